// The files of onnx-community for Gemma 3n, without those of pictures and sounds: an embedding, which also gives the
// inputs of each layer, and a decoder, whose later layers read keys and values of earlier layers.

import { afterAll, beforeAll, expect, it } from 'vitest'
import { inspectGraphs } from '../../src/api/inspect-onnx.js'
import type { Model } from '../../src/api/node.js'
import { loadTokenizer } from '../../src/model/text/tokenizer.js'
import { ModelSession } from '../../src/run/model-session.js'
import { relativeError } from '../model/golden.js'
import { directoryOf } from '../run/models.js'
import { int64 } from '../several-graphs.js'
import {
  type Cell,
  logitsOf,
  lossesWithoutBranch,
  mergeDifference,
  openCell,
  sessionDifference,
  trainDifferences,
} from './cell.js'

let cell: Cell
let session: ModelSession<Model>
beforeAll(async () => {
  cell = await openCell('tests/golden/hybrids/gemma3n', 'dynamo-parts')
  const tokenizer = await loadTokenizer(directoryOf('models/union-3m'))
  session = await ModelSession.open({ ...cell.model, tokenizer, eosTokenIds: [] }, { adapters: { own: cell.adapter } })
})
afterAll(async () => {
  await session.dispose()
  await cell.close()
})

it('gives PEFT’s logits in sessions and merged', async () => {
  expect(await sessionDifference(cell)).toBeLessThan(1e-4)
  expect(await mergeDifference(cell)).toBeLessThan(1e-4)
})

it('gives each row of a batch its own adapter', async () => {
  const [first, second] = cell.numbers.batches.unequal.inputIds.map((row) => row.slice(0, 9))
  const together = await logitsOf(session, { input_ids: int64([...first, ...second], [2, 9]) }, ['own', null])
  const alone = [
    ...(await logitsOf(session, { input_ids: int64(first) }, 'own')),
    ...(await logitsOf(session, { input_ids: int64(second) }, null)),
  ]
  expect(relativeError(Array.from(together), alone)).toBeLessThan(1e-5)
})

it('writes texts with the cache as without it, in a batch of other lengths, an adapter for each', async () => {
  const [long, short] = cell.numbers.batches.unequal.inputIds
  const prompts = [{ ids: long.slice(0, 50) }, { ids: short.slice(0, 9) }]
  const adapters = ['own', null]
  const texts = await session.generate(prompts, { adapter: adapters, maxNewTokens: 8, temperature: 0 })
  for (const [i, { tokenIds }] of texts.entries()) {
    expect(tokenIds).toHaveLength(8)
    const ids = [...prompts[i].ids]
    for (const token of tokenIds) {
      const last = (await logitsOf(session, { input_ids: int64(ids) }, adapters[i])).slice(-131)
      expect(last[token]).toBeGreaterThan(Math.max(...last) - 1e-4)
      ids.push(token)
    }
  }
})

it('is inspected as trainable in every layer that it shares with the adapter', async () => {
  const files = ['onnx/embed_tokens.onnx', 'onnx/decoder_model_merged.onnx']
  const { linears } = await inspectGraphs(cell.model.directory, files, true)
  expect(linears.length).toBeGreaterThanOrEqual(cell.adapter.names().length)
  expect(linears.filter(({ train }) => !train)).toEqual([])
})

it('has PEFT’s losses, gradients and steps, and another loss without any branch', async () => {
  const { loss, gradient, worst } = await trainDifferences(cell)
  expect(loss).toBeLessThan(1e-5)
  expect(gradient, worst).toBeLessThan(1e-3)
  const losses = await lossesWithoutBranch(cell)
  expect(losses.size).toBe(cell.adapter.names().length)
  for (const [name, value] of losses) expect(Math.abs(value - cell.numbers.loss.unequal), name).toBeGreaterThan(1e-5)
})
