// Trains classifiers of texts, words and pictures with lowrank for check_classifier.py and check_images.py:
// OUT/{encoder,classifier,new-head,decoder,dora,bias,bias-of-lora,saved,tokens,tokens-distilbert,modernbert-norms}/{adapter,logits.json},
// of {mpnet,electra,deberta-v2} for texts and (NAME-tokens) words, and of {vit,dinov2} as they are, with all biases
// trained (NAME-bias), and with all norms trained on a fused graph (NAME-norms). Needs a build.
//
//     node scripts/golden/reverse_classifier.mjs OUT

import { mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { loadModel, nodeRuntime, train } from 'lowrank'
import { openEngine } from '../../dist/onnx/runtime/host.js'
import { TrainEngine } from '../../dist/train/engine/engine.js'
import { readParameters } from '../../dist/train/engine/parameters.js'
import { TrainingSessions } from '../../dist/train/engine/sessions.js'
import { resolveSettings } from '../../dist/train/settings.js'
import { loadTask } from '../../dist/train/tasks/tasks.js'

const root = fileURLToPath(new URL('../..', import.meta.url))
const out = process.argv[2]
if (out === undefined) throw new Error('usage: node scripts/golden/reverse_classifier.mjs OUT')

const ENCODER = ['text-classification', 'text-classification/encoder', 'text-classification/encoder']

/** Texts that only have letters, for a model with a tiny vocabulary. */
const LETTERS = ['a b c d e', 'f g h', 'i j k l', 'a f i', 'm n o p', 'b g j'].map((text, i) => {
  return { text, label: ['calm', 'glad', 'sad'][i % 3] }
})
const SAVED = {
  vit: ['layernorm_before', 'layernorm_after', 'layernorm'],
  dinov2: ['norm1', 'norm2', 'layernorm'],
  modernbert: ['attn_norm', 'mlp_norm', 'final_norm'],
}

/** The runs: the task, the model, the folder of its golden data or its rows, and options of the adapter and the run. */
const RUNS = {
  encoder: ENCODER,
  classifier: ['text-classification', 'text-classification/classifier', 'text-classification/classifier'],
  'new-head': [
    ...['text-classification', 'text-classification/classifier', 'text-classification/classifier'],
    {},
    { newHead: true },
  ],
  dora: [...ENCODER, { useDora: true, dropout: 0.1 }],
  bias: [...ENCODER, { bias: 'all' }],
  'bias-of-lora': [...ENCODER, { bias: 'lora_only', targetModules: ['query', 'output.dense'], useDora: true }],
  saved: [...ENCODER, { modulesToSave: ['LayerNorm', 'word_embeddings', 'layer.1.intermediate.dense'] }],
  tokens: ['token-classification', 'text-classification/encoder', 'token-classification/encoder'],
  vit: ['image-classification', 'image-classification/vit', 'image-classification/vit'],
  dinov2: ['image-classification', 'image-classification/dinov2', 'image-classification/dinov2'],
  'modernbert-norms': [
    ...['text-classification', 'fused/modernbert-norms', LETTERS],
    { modulesToSave: SAVED.modernbert, targetModules: 'all-linear' },
  ],
  ...Object.fromEntries(['vit', 'dinov2'].flatMap((name) => imagesOf(name))),
  ...Object.fromEntries(['mpnet', 'electra', 'deberta-v2'].flatMap((name) => familyOf(name))),
  decoder: ['text-classification', 'models/llama-optimum', 'decoder-classification/llama'],
  'tokens-distilbert': ['token-classification', 'token-classification/distilbert', 'token-classification/distilbert'],
}

/** Makes runs of an encoder for both text tasks, with PEFT's default modules if it has some, else all linear layers. */
function familyOf(name) {
  const base = `encoder-families/${name}/encoder`
  const rowsOf = (part) =>
    JSON.parse(readFileSync(join(root, 'tests/golden', base, '..', part, 'golden.json'), 'utf8')).rows
  const settings = { targetModules: name === 'mpnet' ? 'all-linear' : 'default' }
  return [
    [name, ['text-classification', base, rowsOf('texts'), settings]],
    [`${name}-tokens`, ['token-classification', base, rowsOf('words'), settings]],
  ]
}

/** Makes two more trainings of a picture model: with all biases, and with all norms on a fused graph. */
function imagesOf(name) {
  const [task, data] = ['image-classification', `image-classification/${name}`]
  return [
    [`${name}-bias`, [task, data, data, { bias: 'all' }]],
    [`${name}-norms`, [task, `fused/${name}-norms`, data, { modulesToSave: SAVED[name], targetModules: 'all-linear' }]],
  ]
}

for (const [name, [taskName, base, data, settings = {}, others = {}]] of Object.entries(RUNS)) {
  const golden = join(root, 'tests/golden')
  const task = await loadTask(taskName)
  const { rows, maxLength } = Array.isArray(data)
    ? { rows: data, maxLength: 14 }
    : JSON.parse(readFileSync(join(golden, data, 'golden/golden.json'), 'utf8'))
  const folder = join(out, name)
  mkdirSync(folder, { recursive: true })
  const model = await loadModel(join(golden, base), { runtime: nodeRuntime() })
  const config = { rank: 3, alpha: 5, ...settings }
  const options = {
    model,
    task: taskName,
    data: rows,
    maxLength,
    batchSize: 3,
    epochs: 8,
    learningRate: 1e-2,
    ...others,
  }
  const { adapter, report } = await train({ ...options, config, out: join(folder, 'adapter') })
  writeFileSync(join(folder, 'logits.json'), JSON.stringify({ labels: report.labels, logits: await logitsOf(), rows }))
  await model.close()
  console.log(`${name}: trained, saved and run with ${adapter.size} parts`)

  /** Computes the logits of all records or words in the same way as evaluation. */
  async function logitsOf() {
    const examples = []
    for (const row of rows) {
      const parsed = task.parse(row, 'row')
      const loaded = (await task.load?.(parsed, {})) ?? parsed
      examples.push(...task.encode(loaded, { model, maxLength }).examples)
    }
    const open = task.open(model, examples, {}, others)
    const engine = await openEngine(model.runtime, 'train', async () => TrainEngine)
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
    return Array.from({ length: dims[0] }, (_, row) => Array.from(data.slice(row * dims[1], (row + 1) * dims[1])))
  }
}
