// The commands that campaigns run, and the comparison of their results.

import { spawn } from 'node:child_process'
import { readdirSync, readFileSync } from 'node:fs'
import { basename, join } from 'node:path'
import { fileURLToPath } from 'node:url'

export const root = fileURLToPath(new URL('../../', import.meta.url))
const golden = (path) => join(root, 'tests/golden', path)
const binary = join(root, 'dist/app/cli/main.js')
const preload = (name) => ['--import', new URL(`${name}.mjs`, import.meta.url).href]

const DATA = join(root, 'models/data/whaling.eval.jsonl')

const STEPS = 10

export const mergeTo = (out, ...more) => [
  ...['merge', '--base', golden('merge/llama/base'), '--adapter', golden('merge/llama/adapter'), '--out', out],
  ...['--max-shard-size', '20KB', '--threads', '2', ...more],
]

const trainOn = (model, maxLength, out, more) => [
  ...['train', '--model', model, '--data', DATA, '--out', out, '--rank', '2', '--threads', '1'],
  ...['--max-steps', String(STEPS), '--save-every', '2', '--batch-size', '2', '--max-length', maxLength, ...more],
]

export const trainTo = (out, ...more) => trainOn(golden('models/llama-optimum'), '24', out, more)

/** @param model a model that takes hours to read more than 40 tokens */
export const hangTo = (model, out) => trainOn(model, '64', out, [])

/**
 * Starts lowrank.
 *
 * @param slowly true to slow down writes, renames and removals
 * @param fault `code n folder`: the n-th call fails
 */
export function start(args, { slowly = false, fault } = {}) {
  const loaded = [...(slowly ? preload('slow-calls') : []), ...(fault === undefined ? [] : preload('fail-call'))]
  const env = { ...process.env, ...(fault === undefined ? {} : { FAIL_CALL: fault }) }
  const child = spawn(process.execPath, [...loaded, binary, ...args], { env, stdio: ['ignore', 'ignore', 'pipe'] })
  let stderr = ''
  child.stderr.on('data', (text) => (stderr += text))
  const hang = setTimeout(() => child.kill('SIGABRT'), 120_000)
  const ended = new Promise((resolve) => {
    child.on('close', (code, signal) => {
      clearTimeout(hang)
      resolve({ code, signal, stderr })
    })
  })
  return { child, ended }
}

export const run = (args, options) => start(args, options).ended

/** Files that record when and how long something ran. */
const RECORDS = new Set(['lowrank-merge.json', 'metrics.jsonl', 'lowrank-train.json', 'README.md'])

/** Returns the contents of a folder by path, without the records. */
export function contents(folder) {
  const entries = readdirSync(folder, { recursive: true, withFileTypes: true }).filter((entry) => entry.isFile())
  const kept = entries.filter(({ name }) => !RECORDS.has(name)).map(({ parentPath, name }) => join(parentPath, name))
  return new Map(kept.map((path) => [path.slice(folder.length + 1), contentOf(path, basename(folder))]).sort())
}

/** Reads a file. Replaces the folder's name in a report, whose title and tables contain it. */
function contentOf(path, folder) {
  const bytes = readFileSync(path)
  if (basename(path) !== 'report.html') return bytes
  return Buffer.from(bytes.toString().replace(`<title>${folder} `, '<title>').replaceAll(`"${folder}"`, '""'))
}

/** Throws if a folder differs from the result of an undisturbed run. */
export function expectSame(folder, expected) {
  const found = contents(folder)
  const [names, wanted] = [[...found.keys()].join(), [...expected.keys()].join()]
  if (names !== wanted) throw new Error(`files: ${names}; expected ${wanted}`)
  for (const [name, bytes] of expected) if (!found.get(name).equals(bytes)) throw new Error(`${name} has other bytes`)
}

/** Throws if a command failed in another way than with a message of lowrank. */
export function expectRefusal({ code, signal, stderr }) {
  if (signal !== null || code === 0 || code === null) throw new Error(`ended with ${signal ?? code}: ${stderr}`)
  if (!/^error: /m.test(stderr) || /^ {4}at /m.test(stderr)) throw new Error(`not an error of lowrank: ${stderr}`)
}

export function expectSuccess({ code, signal, stderr }) {
  if (code !== 0) throw new Error(`ended with ${signal ?? code}: ${stderr}`)
}

/** Throws if metrics.jsonl does not have exactly one line for each step. */
export function expectSteps(folder) {
  const lines = readFileSync(join(folder, 'metrics.jsonl'), 'utf8').trim().split('\n')
  const steps = lines.map((line) => JSON.parse(line).step).join()
  const expected = Array.from({ length: STEPS }, (_, i) => i + 1).join()
  if (steps !== expected) throw new Error(`metrics.jsonl has the steps ${steps}; expected ${expected}`)
}
