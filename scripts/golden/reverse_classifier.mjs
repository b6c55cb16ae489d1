// Trains a text classifier with lowrank for check_classifier.py: OUT/{encoder,classifier}/{adapter,logits.json}. Needs a build.
//
//     node scripts/golden/reverse_classifier.mjs OUT

import { mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { loadModel, nodeRuntime, train } from 'lowrank'
import { openEngine } from '../../dist/runtime/host.js'
import { textClassification } from '../../dist/tasks/text-classification.js'
import { TrainEngine } from '../../dist/train/engine.js'
import { readParameters } from '../../dist/train/parameters.js'
import { TrainingSessions } from '../../dist/train/sessions.js'
import { resolveSettings } from '../../dist/train/settings.js'

const root = fileURLToPath(new URL('../..', import.meta.url))
const out = process.argv[2]
if (out === undefined) throw new Error('usage: node scripts/golden/reverse_classifier.mjs OUT')

for (const name of ['encoder', 'classifier']) {
  const source = join(root, 'tests/golden/text-classification', name)
  const { rows, maxLength } = JSON.parse(readFileSync(join(source, 'golden/golden.json'), 'utf8'))
  const folder = join(out, name)
  mkdirSync(folder, { recursive: true })
  const model = await loadModel(source, { runtime: nodeRuntime() })
  const config = { rank: 3, alpha: 5 }
  const options = {
    model,
    task: 'text-classification',
    data: rows,
    maxLength,
    batchSize: 3,
    epochs: 8,
    learningRate: 1e-2,
  }
  const { adapter, report } = await train({ ...options, config, out: join(folder, 'adapter') })
  writeFileSync(
    join(folder, 'logits.json'),
    JSON.stringify({ rows, maxLength, labels: report.labels, logits: await logitsOf() }),
  )
  await model.close()
  console.log(`${name}: trained, saved and run with ${adapter.size} parts`)

  /** The logits of all rows, as evaluation computes them. */
  async function logitsOf() {
    const examples = rows.flatMap((row) => {
      return textClassification.encode(textClassification.parse(row, 'row'), { model, maxLength }).examples
    })
    const open = textClassification.open(model, examples)
    const engine = openEngine(model.runtime, 'train', (runtime) => new TrainEngine(runtime))
    const parts = { model, open, adapter, modules: undefined, settings: resolveSettings({}) }
    const sessions = await TrainingSessions.create(parts, engine.remote)
    const { parameters } = sessions
    const values = readParameters(
      adapter,
      parameters.map((parameter) => parameter.name),
    )
    const zeros = () => values.map(({ length }) => new Float32Array(length))
    const optimizer = { beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weightDecay: 0 }
    const state = { parameters: values, firstMoments: zeros(), secondMoments: zeros(), updates: 0 }
    await engine.remote.start({ parameters, optimizer, maxGradNorm: 1 }, state)
    const pass = await sessions.evaluationPass(open.collate(examples, 16), examples.length)
    const outputs = await engine.remote.forward(pass, pass.predictions)
    await engine.remote.dispose()
    await engine.close()
    const { data, dims } = outputs[pass.predictions[0]]
    return rows.map((_, row) => Array.from(data.slice(row * dims[1], (row + 1) * dims[1])))
  }
}
