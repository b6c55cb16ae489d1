// Adapters that replace whole tensors, on graphs in which these are easy to miss: a head that only computes the last
// token, and norms in both branches of an `If`. Compared with PEFT's logits (tests/golden/replaced).

import { readFileSync } from 'node:fs'
import { describe, expect, it } from 'vitest'
import {
  type Feeds,
  type LoraAdapter,
  loadAdapter,
  MemoryDirectory,
  type Model,
  type OnnxModel,
} from '../../src/api/node.js'
import { MemorySource } from '../../src/core/base/bytes.js'
import { parseSafetensorsHeader, readTensorF32 } from '../../src/files/safetensors.js'
import { loadOnnx } from '../../src/onnx/format/model.js'
import { ModelSession } from '../../src/run/model-session.js'
import { goldenPath } from '../golden.js'
import { mergeOnnx } from '../merge/toolkit.js'
import { directoryOf, feedsOf, inThread, maxDifference, openModel } from '../run/models.js'

const FOLDER = 'tests/golden/replaced'
const { inputIds }: { inputIds: number[][] } = JSON.parse(readFileSync(goldenPath('replaced', 'golden.json'), 'utf8'))
const golden = await parseSafetensorsHeader(
  new MemorySource(readFileSync(goldenPath('replaced', 'logits.safetensors'))),
)
const logitsOf = async (name: string) => (await readTensorF32(golden, name)).data

/** The branches of the `If`: without a cache and with one. In this graph, both compute the same. */
const BRANCHES = [false, true]

function feedsFor(model: Model, takesCache: boolean): Feeds {
  const feeds = feedsOf(model, inputIds)
  if (feeds.use_cache_branch === undefined) return feeds
  return { ...feeds, use_cache_branch: { type: 'bool', data: Uint8Array.of(takesCache ? 1 : 0), dims: [1] } }
}

/** Returns the logits at the last token of each row. */
async function lastLogits(
  session: ModelSession,
  feeds: Feeds,
  adapter?: string | (string | null)[],
): Promise<Float32Array> {
  const { logits } = await session.run(feeds, { adapter })
  const [rows, tokens, vocabulary] = logits.dims
  const data = logits.data as Float32Array
  return Float32Array.from({ length: rows * vocabulary }, (_, i) => {
    return data[((Math.floor(i / vocabulary) + 1) * tokens - 1) * vocabulary + (i % vocabulary)]
  })
}

async function check(model: Model, name: string, branches: readonly boolean[]): Promise<void> {
  const adapter = await loadAdapter(directoryOf(`${FOLDER}/adapter-${name}`))
  const [adapted, base] = [await logitsOf(name), await logitsOf(`base.${name}`)]
  const half = adapted.length / 2
  const mixed = [...adapted.subarray(0, half), ...base.subarray(half)]
  const session = await ModelSession.open(model, { adapters: { own: adapter } })
  const merged = await mergedOf(model.onnx, adapter)
  const alone = await ModelSession.open({ onnx: merged, runtime: inThread })
  for (const takesCache of branches) {
    const feeds = feedsFor(model, takesCache)
    expect(maxDifference(await lastLogits(session, feeds), base)).toBeLessThan(1e-5)
    expect(maxDifference(await lastLogits(session, feeds, 'own'), adapted)).toBeLessThan(1e-5)
    expect(maxDifference(await lastLogits(session, feeds, ['own', null]), mixed)).toBeLessThan(1e-5)
    expect(maxDifference(await lastLogits(alone, feeds), adapted)).toBeLessThan(1e-5)
  }
  for (const opened of [session, alone]) await opened.dispose()
  for (const opened of [merged, model.onnx]) await opened.close()
}

async function mergedOf(onnx: OnnxModel, adapter: LoraAdapter): Promise<OnnxModel> {
  const out = new MemoryDirectory()
  await mergeOnnx(onnx, adapter, out)
  return loadOnnx(out, 'model.onnx')
}

describe('a replaced head of a graph that prune_lm_head has cut', () => {
  it('gives PEFT’s logits in sessions, also in one row alone, and merged', async () => {
    const model = await openModel(`${FOLDER}/pruned-head`)
    const session = await ModelSession.open(model)
    expect((await session.run(feedsOf(model, inputIds))).logits.dims).toEqual([2, 1, 128])
    await session.dispose()
    await check(model, 'head', [false])
  })
})

describe('replaced norms', () => {
  it('give PEFT’s logits in both branches of an If, in sessions and merged', async () => {
    await check(await openModel('tests/golden/models/merged-if'), 'norms', BRANCHES)
  })
})
