// How much memory one loaded model takes by itself, with a session, with a training, and with both at the same time.
// Linux only. Usage: npm run build && node bench/one-model.mjs --model FOLDER [--task text-classification]
//
// Each row is measured in a separate process, as the peak between steps. `own` is anonymous memory (Pss_Anon): packed
// copies of weights, and buffers of runs. `file` is the part of mapped files that was read (Pss_File); it counts once,
// even if two sessions read it.
import { spawnSync } from 'node:child_process'
import { readFileSync, statSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'
import { loadModel, openSession, train } from '../dist/api/node.js'

const { values } = parseArgs({
  options: {
    model: { type: 'string', default: 'tests/golden/text-classification/encoder' },
    task: { type: 'string', default: 'text-classification' },
    part: { type: 'string' },
    lean: { type: 'boolean', default: false },
  },
})
const { model: folder, task, part, lean } = values
const memory = lean ? 'low' : 'fast'
const PARTS = ['model', 'session', 'training', 'both']
const DATA = Array.from({ length: 16 }, (_, i) => ({
  text: `${'the ship went to sea and came back at night '.repeat(2)}${i}`,
  label: i % 2 === 0 ? 'even' : 'odd',
}))

if (part === undefined) compare()
else await measure()

function compare() {
  const graph = join(folder, 'onnx/model.onnx')
  console.log(`${folder}: model.onnx of ${megabytes(statSync(graph).size)} MB; in MB, own + file`)
  const script = fileURLToPath(import.meta.url)
  for (const lean of [[], ['--lean']]) {
    for (const name of PARTS) {
      if (name === 'model' && lean.length > 0) continue
      const args = [script, '--part', name, '--model', folder, '--task', task, ...lean]
      const { stdout, stderr, status } = spawnSync(process.execPath, args, { encoding: 'utf8' })
      if (status !== 0) throw new Error(stderr)
      const { own, file } = JSON.parse(stdout)
      const label = `${name}${lean.length > 0 ? ', low memory' : ''}`
      console.log(`${label.padEnd(22)} ${String(megabytes(own)).padStart(6)} + ${megabytes(file)}`)
    }
  }
}

async function measure() {
  const model = await loadModel(folder)
  const most = { own: 0, file: 0 }
  const look = () => {
    const status = readFileSync('/proc/self/smaps_rollup', 'utf8')
    const read = (name) => 1024 * Number(new RegExp(`^${name}:\\s+(\\d+)`, 'm').exec(status)[1])
    most.own = Math.max(most.own, read('Pss_Anon'))
    most.file = Math.max(most.file, read('Pss_File'))
  }
  const session = part === 'session' || part === 'both' ? await openSession(model, { memory }) : undefined
  const ids = { type: 'int64', data: BigInt64Array.from({ length: 24 }, () => 5n), dims: [1, 24] }
  const run = () => session?.run({ input_ids: ids })
  await run()
  look()
  if (part === 'training' || part === 'both') {
    const on = { step: look, warning: () => {} }
    await train({ model, task, data: DATA, batchSize: 4, maxSteps: 4, memory, on })
    await run()
    look()
  }
  console.log(JSON.stringify(most))
  await session?.dispose()
  await model.close()
}

function megabytes(bytes) {
  return Math.round(bytes / 1e6)
}
