// Checks that the tests notice mistakes: makes each mistake of scripts/mutations.json in a copy of the project, and
// expects `npm test` to fail. Each entry names the test that finds it, so that most take only seconds.
//   npm run mutations [-- --only PATTERN]
import { execFileSync, spawnSync } from 'node:child_process'
import { cpSync, mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'

const root = join(dirname(fileURLToPath(import.meta.url)), '..')
const { only = '' } = parseArgs({ options: { only: { type: 'string' } } }).values
const mutations = JSON.parse(readFileSync(join(root, 'scripts', 'mutations.json'), 'utf8'))
const chosen = mutations.filter(({ file, mistake }) => `${file} ${mistake}`.includes(only))

const copy = mkdtempSync(join(tmpdir(), 'lowrank-mutations-'))
const run = (command, ...words) =>
  spawnSync(command, words, { cwd: copy, encoding: 'utf8', env: { ...process.env, CI: 'true' } })

/** Runs the test that is named for the mistake, and then all tests. A test that fails only once does not count. */
function firstFailure(test) {
  const named = run('npx', 'vitest', 'run', test, '--bail=1')
  if (named.status !== 0) return failedTest(named)
  const all = failedTest(run('npm', 'test', '--', '--bail=1'))
  const file = testFile(all)
  return file !== undefined && run('npm', 'test', '--', file).status !== 0 ? all : undefined
}

const testFile = (failure) => failure?.match(/tests\S*\.test\.ts/)?.[0]

/** Throws if a test fails without the mistake: then it found nothing. */
function expectPass(outcome) {
  if (outcome.status !== 0) throw new Error(`tests fail without a mistake: ${failedTest(outcome)}`)
}

function failedTest({ status, stdout, stderr }) {
  if (status === 0) return undefined
  // biome-ignore lint/suspicious/noControlCharactersInRegex: colors of the terminal are removed
  const plain = `${stdout}${stderr}`.replace(/\u001b\[[0-9;]*m/g, '')
  // A crash or a time limit has no test's name: the end of the output says what happened.
  return /FAIL\s+(?:\|?\w+\|?\s+)?(tests.*)/.exec(plain)?.[1] ?? plain.trim().split('\n').slice(-5).join('\n        ')
}

let missed = 0
try {
  for (const path of execFileSync('git', ['ls-files', '-z'], { cwd: root, encoding: 'utf8' })
    .split('\0')
    .filter(Boolean)) {
    cpSync(join(root, path), join(copy, path))
  }
  symlinkSync(join(root, 'node_modules'), join(copy, 'node_modules'))
  expectPass(run('npx', 'vitest', 'run', ...new Set(chosen.map(({ test }) => test))))
  for (const { file, mistake, from, to, test } of chosen) {
    const path = join(copy, file)
    const text = readFileSync(path, 'utf8')
    if (text.split(from).length !== 2) throw new Error(`${file}: "${from}" is not there exactly once`)
    writeFileSync(
      path,
      text.replace(from, () => to),
    )
    const failure = firstFailure(test)
    writeFileSync(path, text)
    const finder = testFile(failure)
    if (finder !== undefined && finder !== test) expectPass(run('npm', 'test', '--', finder))
    if (failure === undefined) missed++
    console.log(
      `${failure === undefined ? 'MISSED' : 'caught'}  ${file}: ${mistake}${failure === undefined ? '' : `\n        by ${failure}`}`,
    )
  }
} finally {
  rmSync(copy, { recursive: true, force: true })
}
console.log(`${chosen.length - missed} mutations caught, ${missed} missed`)
process.exitCode = missed === 0 ? 0 : 1
