// Runs the bundled model and results of lowrank in transformers.js, which must give the same outputs as lowrank. A step
// of `.ci/run`.
//
//     node scripts/transformers-js-check.mjs SCRATCH
//
// SCRATCH: a folder for transformers.js and for the models that are made here. Prints a line for each row of CASES.

import assert from 'node:assert/strict'
import { existsSync, readFileSync } from 'node:fs'
import { basename, join } from 'node:path'
import { LoraAdapter, loadAdapter, loadModel, MemoryDirectory, merge, openSession, saveAdapter } from 'lowrank'
import { pipelineWithAdapters } from 'lowrank/transformers'
import unpackAll from './golden/packed.mjs'
import { installTransformers, loadTransformers, openPipeline, ROOT } from './transformers-js.mjs'

const scratch = process.argv[2]
if (scratch === undefined) throw new Error('usage: node scripts/transformers-js-check.mjs SCRATCH')

unpackAll()
const UNION = join(ROOT, 'models/union-3m')
const ADAPTER = join(ROOT, 'tests/golden/peft/rslora')
/** An export of optimum with 4-bit weights. */
const QUANTIZED = join(ROOT, 'tests/golden/models/llama-q4')
const PROMPTS = ['And the people', 'The Constitution of the United States', 'The', 'On the 4th of July: ']
const MAX_NEW_TOKENS = 40
const ENCODER = join(ROOT, 'tests/golden/text-classification/encoder')
const IMAGES = join(ROOT, 'tests/golden/image-classification')
const SENTENCES = [
  'The sea was calm.',
  'He saw the sun and was happy!',
  'a',
  'Rain came, a grim night and the ship went',
]

/**
 * The checks for each task. `folder` makes the model for transformers.js. `check` compares its pipeline with lowrank
 * over `base` and `adapter`, and returns a sentence about the comparison. `open` opens the pipeline if transformers.js
 * cannot open it by the task's name. Rows with `isMergedOnly` cannot run in a pipeline over lowrank's session.
 */
const CASES = [
  {
    name: 'the bundled model',
    task: 'text-generation',
    base: UNION,
    folder: () => UNION,
    check: compareTexts,
  },
  {
    name: 'an adapter merged into the bundled model',
    task: 'text-generation',
    base: UNION,
    adapter: ADAPTER,
    folder: mergedOnnx,
    check: compareTexts,
  },
  {
    name: 'a new head merged into an encoder',
    task: 'text-classification',
    base: ENCODER,
    adapter: join(ENCODER, 'golden/adapter-init'),
    folder: mergedOnnx,
    check: compareLabels,
  },
  {
    name: 'a new head merged into a decoder',
    task: 'text-classification',
    base: join(ROOT, 'tests/golden/models/qwen2-optimum'),
    adapter: join(ROOT, 'tests/golden/decoder-classification/qwen2/golden/adapter-init'),
    folder: mergedOnnx,
    open: openClassifier,
    check: compareLabels,
    isMergedOnly: true,
  },
  {
    name: 'a new head for words merged into an encoder',
    task: 'token-classification',
    base: ENCODER,
    adapter: join(ROOT, 'tests/golden/token-classification/encoder/golden/adapter-init'),
    folder: mergedOnnx,
    check: compareTags,
  },
  ...['vit', 'dinov2'].map((name) => ({
    name: `a new head merged into ${name}`,
    task: 'image-classification',
    base: join(IMAGES, name),
    adapter: join(IMAGES, name, 'golden/adapter-init'),
    folder: mergedOnnx,
    check: comparePictures,
  })),
  {
    name: 'an adapter merged into an encoder',
    task: 'feature-extraction',
    base: ENCODER,
    adapter: waveAdapter('encoder.layer.0.attention.self.', { query: [16, 16], value: [16, 16] }),
    folder: mergedOnnx,
    check: compareVectors,
  },
  ...['t5', 'bart'].map((name) => ({
    name: `an adapter merged into both graphs of ${name}`,
    task: 'text2text-generation',
    base: join(ROOT, 'tests/golden/graphs', name),
    adapter: join(ROOT, 'tests/golden/seq2seq', name, 'adapter-init'),
    folder: mergedOnnx,
    check: compareWritten,
    isMergedOnly: true,
  })),
  ...['transformers.js', 'optimum'].map((layout) => ({
    name: `an adapter merged in the layout of ${layout}`,
    task: 'feature-extraction',
    base: ENCODER,
    adapter: waveAdapter('encoder.layer.0.attention.self.', { query: [16, 16], value: [16, 16] }),
    folder: (entry) => mergedOnnx(entry, layout),
    open: (library, task, folder) => openPipeline(library, task, folder, layout === 'optimum' ? { subfolder: '' } : {}),
    check: compareVectors,
    isMergedOnly: true,
  })),
  {
    name: 'an adapter beside 4-bit weights',
    task: 'text-generation',
    base: QUANTIZED,
    adapter: waveAdapter('model.layers.0.', {
      'self_attn.q_proj': [64, 32],
      'self_attn.v_proj': [32, 32],
      'mlp.up_proj': [64, 32],
    }),
    folder: mergedOnnx,
    check: compareTexts,
  },
]

const packages = join(scratch, 'transformers-js')
try {
  installTransformers(packages)
} catch (error) {
  console.log(`skipped: no transformers.js here: ${error.message.split('\n')[0]}`)
  process.exit()
}
const { transformers, ort, versions } = loadTransformers(packages)
for (const [name, version] of Object.entries(versions)) console.log(`${name} ${version}`)
for (const entry of CASES) {
  const { open = openPipeline } = entry
  const pipeline = await open(transformers, entry.task, await entry.folder(entry))
  try {
    console.log(`${entry.name}: ${await entry.check(pipeline, entry)}`)
  } finally {
    await pipeline.dispose()
  }
  if (entry.isMergedOnly) continue
  // The same check without merging: two adapters, and calls with both at the same time.
  const { adapter } = entry
  const adapters = adapter === undefined ? {} : { adapter, other: await changed(adapter) }
  const adapted = await pipelineWithAdapters(entry.task, entry.base, { adapters, transformers })
  const checkWith = (name) => {
    const call = (input, options) => adapted(input, { ...options, adapter: name })
    return entry.check(call, { ...entry, adapter: name && adapters[name] })
  }
  const [result] = await Promise.all(adapter === undefined ? [checkWith()] : ['adapter', 'other'].map(checkWith))
  console.log(`${entry.name}, in a pipeline with adapters: ${result}`)
  await adapted.dispose()
}

/** Opens the pipeline from its parts, because `pipeline('text-classification')` cannot open decoders. */
async function openClassifier({ AutoModel, AutoTokenizer, TextClassificationPipeline, env }, task, folder) {
  env.localModelPath = scratch
  const name = basename(folder)
  const model = await AutoModel.from_pretrained(name, { dtype: 'fp32' })
  return new TextClassificationPipeline({ task, model, tokenizer: await AutoTokenizer.from_pretrained(name) })
}

/** Makes another adapter for the same layers. It gets its own head if the first adapter has a head. */
async function changed(adapter) {
  const copy = new MemoryDirectory()
  if (typeof adapter !== 'string') await saveAdapter(adapter, copy)
  const changedAdapter = await loadAdapter(typeof adapter === 'string' ? adapter : copy)
  for (const { weightB } of changedAdapter.parts('linear')) for (const i of weightB.data.keys()) weightB.data[i] *= -1.5
  for (const { weight } of changedAdapter.parts('replacement'))
    for (const i of weight.data.keys()) weight.data[i] *= -0.8
  return changedAdapter
}

/** Makes an adapter with different values in each layer. `layers`: names with [d, k]. */
function waveAdapter(prefix, layers) {
  const adapter = new LoraAdapter({ rank: 4, alpha: 8 })
  const wave = (rows, columns, phase) =>
    Array.from({ length: rows }, (_, i) =>
      Array.from({ length: columns }, (_, j) => 0.2 * Math.sin(phase + 1.7 * (i * columns + j))),
    )
  for (const [i, [name, [d, k]]] of Object.entries(layers).entries()) {
    adapter.addFactors(prefix + name, wave(4, k, i), wave(d, 4, -i))
  }
  return adapter
}

/** Compares vectors of single sentences. */
async function compareVectors(pipeline, { base, adapter }) {
  const expected = await withSession(base, adapter, (session) => {
    return session.embed(SENTENCES, { adapter: 'adapter', pooling: 'mean' })
  })
  for (const [i, sentence] of SENTENCES.entries()) {
    const { data } = await pipeline(sentence, { pooling: 'mean', normalize: true })
    assert.equal(data.length, expected[i].length)
    for (const [j, value] of Array.from(data).entries()) assert.ok(Math.abs(value - expected[i][j]) < 1e-5, sentence)
  }
  return `the vectors of ${SENTENCES.length} texts are the same`
}

/** Compares greedy texts: transformers.js writes them one by one, and then in a batch that it pads on the left. */
async function compareTexts(pipeline, { base, adapter }) {
  const expected = await lowrankTexts(base, adapter)
  const options = { max_new_tokens: MAX_NEW_TOKENS, do_sample: false, return_full_text: false }
  for (const [i, prompt] of PROMPTS.entries()) {
    const [{ generated_text: text }] = await pipeline(prompt, options)
    assert.equal(text, expected[i], prompt)
  }
  const batch = await pipeline(PROMPTS, { ...options, return_full_text: true })
  assert.deepEqual(
    batch.map(([{ generated_text: text }]) => text),
    PROMPTS.map((prompt, i) => prompt + expected[i]),
  )
  return `${PROMPTS.length} texts of ${MAX_NEW_TOKENS} tokens are the same, one by one and in a batch`
}

/** Compares greedy texts, one by one. */
async function compareWritten(pipeline, { base, adapter }) {
  const expected = await lowrankTexts(base, adapter)
  for (const [i, prompt] of PROMPTS.entries()) {
    const [{ generated_text: text }] = await pipeline(prompt, { max_new_tokens: MAX_NEW_TOKENS, do_sample: false })
    assert.equal(text, expected[i], prompt)
  }
  return `${PROMPTS.length} texts of ${MAX_NEW_TOKENS} tokens are the same`
}

function lowrankTexts(base, adapter) {
  return withSession(base, adapter, async (session) => {
    const texts = []
    for (const prompt of PROMPTS) {
      const { text, tokens } = await session.generate(prompt, {
        adapter: adapter && 'adapter',
        temperature: 0,
        maxNewTokens: MAX_NEW_TOKENS,
      })
      assert.equal(tokens, MAX_NEW_TOKENS, `${prompt}: too short a text to compare`)
      texts.push(text)
    }
    return texts
  })
}

/** Compares the scores of all labels for sentences, one by one and in a batch. */
async function compareLabels(pipeline, { base, adapter }) {
  const expected = await withSession(base, adapter, (session) => {
    return session.classify(SENTENCES, { adapter: 'adapter', topK: 99 })
  })
  const batch = await pipeline(SENTENCES, { top_k: 99 })
  for (const [i, sentence] of SENTENCES.entries()) {
    for (const found of [batch[i], await pipeline(sentence, { top_k: 99 })]) {
      assert.deepEqual(found.map(labelOf), expected[i].labels.map(labelOf), sentence)
      for (const [j, { score }] of found.entries()) {
        assert.ok(Math.abs(score - expected[i].labels[j].score) < 1e-5, sentence)
      }
    }
  }
  return `all labels of ${SENTENCES.length} texts have the same scores, one by one and in a batch`
}

/** Compares the labels and scores of all tokens but special ones. */
async function compareTags(pipeline, { base, adapter }) {
  const tagged = await withSession(base, adapter, (session) => session.tag(SENTENCES, { adapter: 'adapter' }))
  const batch = await pipeline(SENTENCES, { ignore_labels: [] })
  let words = 0
  for (const [i, sentence] of SENTENCES.entries()) {
    for (const found of [batch[i], await pipeline(sentence, { ignore_labels: [] })]) {
      // The pipeline gives a label to each token; a word has the label of its first token.
      const firsts = found.filter(({ word }) => word !== '' && !word.startsWith('##'))
      assert.deepEqual(
        firsts.map(({ entity }) => entity),
        tagged[i].words.map(({ tag }) => tag),
        sentence,
      )
      for (const [j, { word, score }] of firsts.entries()) {
        assert.ok(tagged[i].words[j].text.toLowerCase().startsWith(word.toLowerCase()), `${sentence}: ${word}`)
        assert.ok(Math.abs(score - tagged[i].words[j].score) < 1e-5, sentence)
        words++
      }
    }
  }
  return `the tags of ${words / 2} words have the same scores, one by one and in a batch`
}

/** Compares the labels of pictures that need no resizing, because transformers.js and Pillow resize differently. */
async function comparePictures(pipeline, { base, adapter }) {
  const { rows } = JSON.parse(readFileSync(join(base, 'golden/golden.json'), 'utf8'))
  const { size } = JSON.parse(readFileSync(join(base, 'preprocessor_config.json'), 'utf8'))
  const edge = size.shortest_edge
  const isSized = ({ width, height }) =>
    edge ? Math.min(width, height) === edge : width === size.width && height === size.height
  const images = rows.map(({ image }) => image).filter(isSized)
  const expected = await withSession(base, adapter, (session) => {
    return session.classify(images, { adapter: 'adapter', topK: 99 })
  })
  for (const [i, { data, width, height }] of images.entries()) {
    const picture = new transformers.RawImage(Uint8ClampedArray.from(data), width, height, 3)
    const found = await pipeline(picture, { top_k: 99 })
    assert.deepEqual(found.map(labelOf), expected[i].labels.map(labelOf))
    for (const [j, { score }] of found.entries()) assert.ok(Math.abs(score - expected[i].labels[j].score) < 1e-5)
  }
  assert.ok(images.length > 0)
  return `all labels of ${images.length} picture(s) have the same scores`
}

function labelOf({ label }) {
  return label
}

/** Calls `use` with a session of lowrank over `base` that has `adapter` under the name "adapter". */
async function withSession(base, adapter, use) {
  const model = await loadModel(base, { runtime: { module: ort } })
  const adapters =
    adapter === undefined ? {} : { adapter: typeof adapter === 'string' ? await loadAdapter(adapter) : adapter }
  const session = await openSession(model, { adapters })
  try {
    return await use(session)
  } finally {
    await session.dispose()
    await model.close()
  }
}

/** Merges `adapter` into the .onnx files of `base`, in a complete model folder. */
async function mergedOnnx({ name, base, adapter }, layout) {
  const out = join(scratch, name.replaceAll(' ', '-')) // transformers.js takes no names with spaces
  const isFile = layout === undefined && existsSync(join(base, 'onnx/model.onnx'))
  const from = isFile ? join(base, 'onnx/model.onnx') : base
  await merge({ base: from, adapters: adapter, out, layout, overwrite: true })
  return out
}
