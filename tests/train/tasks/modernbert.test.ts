// ModernBERT, whose head takes the mean of all tokens. optimum's export of the encoder gives PEFT's losses, gradients
// and logits.

import { readFileSync } from 'node:fs'
import { expect, it } from 'vitest'
import { loadAdapter, loadModel, MemoryDirectory } from '../../../src/api/node.js'
import { readRows } from '../../../src/files/data/read-rows.js'
import { merge } from '../../../src/merge/merge.js'
import { ModelSession } from '../../../src/run/model-session.js'
import { encodeRows } from '../../../src/train/rows/examples.js'
import type { Task } from '../../../src/train/tasks/task.js'
import { type LabeledExample, textClassification } from '../../../src/train/tasks/text-classification.js'
import { relativeError } from '../../model/golden.js'
import { directoryOf, inThread, maxDifference, openModel } from '../../run/models.js'
import { checkGoldenRun, type GoldenRun } from './golden-run.js'

const folder = 'tests/golden/modernbert'

interface Golden extends GoldenRun {
  rows: { text: string; textPair?: string; label: string }[]
  maxLength: number
  logits: number[][]
}

const golden: Golden = JSON.parse(readFileSync(`${folder}/golden/golden.json`, 'utf8'))
const { maxLength } = golden

it("gives PEFT's loss, logits and gradients, and takes its steps", async () => {
  const model = await openModel(folder)
  const options = { task: textClassification as unknown as Task, model, maxLength, name: 'data' }
  const { kept } = await encodeRows(readRows(golden.rows), options)
  const examples = [...kept.examples] as LabeledExample[]
  const open = textClassification.open(model, examples)
  const { logits } = await checkGoldenRun(model, open, examples, {
    folder: `${folder}/golden`,
    golden,
    length: maxLength,
  })
  expect(relativeError(logits.data as Float32Array, golden.logits.flat())).toBeLessThan(1e-5)
  await model.close()
})

it('gives the same logits in a session, and merged', async () => {
  const texts = golden.rows.map(({ text, textPair }) => ({ text, textPair }))
  const adapter = await loadAdapter(directoryOf(`${folder}/golden/adapter-init`))
  const out = new MemoryDirectory({}, 'out')
  await merge({ base: { directory: directoryOf(folder) }, adapters: adapter, out })
  const [model, merged] = [await openModel(folder), await loadModel(out, { runtime: inThread })]
  const [own, alone] = [
    await ModelSession.open(model, { adapters: { mood: adapter } }),
    await ModelSession.open(merged),
  ]
  const results = [
    await own.classify(texts, { adapter: 'mood', maxLength }),
    await alone.classify(texts, { maxLength }),
  ]
  for (const found of results) {
    found.forEach(({ logits }, i) => void expect(maxDifference(logits, golden.logits[i])).toBeLessThan(1e-5))
  }
  for (const session of [own, alone]) await session.dispose()
  for (const opened of [model, merged]) await opened.close()
})

it.each(['fp16', 'fp16_io'])('merges the head into %s, with logits near those of float32', async (form) => {
  const texts = golden.rows.map(({ text, textPair }) => ({ text, textPair }))
  const adapter = await loadAdapter(directoryOf(`${folder}/golden/adapter-init`))
  const out = new MemoryDirectory({}, 'out')
  const path = `onnx/model_${form}.onnx`
  await merge({ base: { directory: directoryOf(folder), file: path }, adapters: adapter, out })
  const merged = await loadModel(out, { runtime: inThread, onnxPath: path })
  const session = await ModelSession.open(merged)
  const found = await session.classify(texts, { maxLength })
  const logits = Float32Array.from(found.flatMap((one) => [...one.logits]))
  expect(relativeError(logits, golden.logits.flat())).toBeLessThan(5e-3)
  await session.dispose()
  await merged.close()
})
