// Goes from an empty folder to an answer with a newly trained adapter: packs lowrank as npm publishes it, installs the
// archive and transformers.js with npm, and runs the script "From text to an answer" of docs/transformers-js.md
// unchanged. Prints the seconds of each part, the number of lines of the script, and its output. A step of `.ci/run`.
//
//     npm run build && node bench/install-to-answer.mjs [--fresh]
//
// --fresh: gives npm an empty cache instead of its usual one, so that each package comes over the network.
import { execFileSync } from 'node:child_process'
import { cpSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { parseArgs } from 'node:util'
import { PACKAGE, ROOT, VERSION } from '../scripts/transformers-js.mjs'

const GOAL = { seconds: 180, lines: 15 }
const PROMPT = 'The captain of the ship'

const { values } = parseArgs({ options: { fresh: { type: 'boolean', default: false } } })
const page = readFileSync(join(ROOT, 'docs/transformers-js.md'), 'utf8')
const [, script] = /^## From text to an answer\n.*?^```js\n(.*?)^```$/ms.exec(page)
const folder = mkdtempSync(join(tmpdir(), 'lowrank-from-nothing-'))
try {
  measure(join(folder, 'project'))
} finally {
  rmSync(folder, { recursive: true, force: true, maxRetries: 20 })
}

function measure(project) {
  const options = ['--ignore-scripts', '--json', '--pack-destination', folder]
  const [{ filename, size }] = JSON.parse(npm(['pack', ...options], ROOT))
  // The package does not contain the model and its data.
  cpSync(join(ROOT, 'models'), join(project, 'models'), { recursive: true })
  writeFileSync(join(project, 'answer.mjs'), script)

  const started = performance.now()
  try {
    npm(['install', '--no-audit', '--no-fund', join(folder, filename), `${PACKAGE}@${VERSION}`], project)
  } catch (error) {
    const [reason] = String(error.stderr ?? error.message)
      .trim()
      .split('\n')
    console.log(`skipped: npm cannot install ${PACKAGE} here: ${reason}`)
    return
  }
  const installed = performance.now()
  const answer = execFileSync(process.execPath, ['answer.mjs'], { cwd: project, encoding: 'utf8' })
  const answered = performance.now()

  if (!answer.includes(PROMPT) || answer.length < PROMPT.length + 50) throw new Error(`no answer: ${answer}`)
  const seconds = (from, to) => ((to - from) / 1000).toFixed(1)
  console.log(answer.trim())
  console.log(`lowrank, packed                     ${(size / 1000).toFixed(0)} kB`)
  console.log(`npm install, with ${PACKAGE} ${VERSION}   ${seconds(started, installed)} s`)
  console.log(`training of 60 steps, and an answer ${seconds(installed, answered)} s`)
  console.log(`in all                              ${seconds(started, answered)} s (goal: at most ${GOAL.seconds} s)`)
  console.log(
    `the script                          ${script.trim().split('\n').length} lines (goal: at most ${GOAL.lines})`,
  )
}

function npm(args, cwd) {
  // The script of onnxruntime-node fetches CUDA libraries; the CPU library is in the package.
  const env = { ...process.env, ONNXRUNTIME_NODE_INSTALL: 'skip' }
  if (values.fresh) env.npm_config_cache = join(folder, 'cache')
  return execFileSync('npm', [...args, '--loglevel=error'], {
    cwd,
    env,
    encoding: 'utf8',
    stdio: 'pipe',
    timeout: 300_000,
  })
}
