// Long RoPE: the rotary factors of a graph by onnxruntime-genai depend on the length of a run. The texts are
// transformers' (scripts/golden/long_rope.py).

import { readFileSync } from 'node:fs'
import { afterAll, afterEach, beforeAll, describe, expect, it, vi } from 'vitest'
import type { Model } from '../../src/api/node.js'
import { rotarySwitches, sideOf } from '../../src/model/inputs/rotary-switch.js'
import { DataType } from '../../src/onnx/format/tensors.js'
import { Builder } from '../../src/onnx/view/builder.js'
import { Graph, readGraph } from '../../src/onnx/view/graph.js'
import { TextBatch } from '../../src/run/generate/text-batch.js'
import { ModelSession } from '../../src/run/model-session.js'
import { goldenPath } from '../golden.js'
import { openModel, recordingRuntime } from './models.js'

interface Text {
  readonly prompt: readonly number[]
  readonly tokens: readonly number[]
}
const golden: { switch: number; texts: readonly Text[]; crossing: Text } = JSON.parse(
  readFileSync(goldenPath('long-rope', 'golden.json'), 'utf8'),
)

let model: Model
let session: ModelSession<Model>
beforeAll(async () => {
  model = await openModel('tests/golden/long-rope')
  session = await ModelSession.open(model)
})
afterAll(async () => {
  await session.dispose()
  await model.close()
})

const { step } = TextBatch.prototype
afterEach(() => void vi.restoreAllMocks())

const write = async (texts: readonly Text[]) => {
  const prompts = texts.map(({ prompt }) => ({ ids: [...prompt] }))
  const results = await session.generate(prompts, { maxNewTokens: texts[0].tokens.length, temperature: 0 })
  return results.map(({ tokenIds }) => tokenIds)
}

describe('long RoPE', () => {
  it('is found by the structure of the graph, whichever way round it compares', () => {
    expect(rotarySwitches(readGraph(model.onnx))).toEqual([golden.switch])
    for (const [opType, isFirst, last] of [
      ['Greater', false, 16],
      ['GreaterOrEqual', false, 15],
      ['Less', false, 15],
      ['LessOrEqual', false, 16],
      ['Less', true, 16],
      ['Greater', true, 15],
    ] as const) {
      const graph = new Graph(model.onnx.proto)
      const g = new Builder(graph, 'test')
      const node = graph.nodes.find((one) => one.opType === 'If')!
      const [length] = graph.producer(node.input[0])!.input
      const bound = g.int([16])
      graph.setInput(node, 0, g.op(opType, isFirst ? [bound, length] : [length, bound]))
      expect([opType, isFirst, rotarySwitches(graph)]).toEqual([opType, isFirst, [last]])
      // A value that depends on the tokens is not a length.
      const value = g.cast(graph.nodes.find((one) => one.opType === 'GroupQueryAttention')!.output[0], DataType.FLOAT)
      graph.setInput(node, 0, g.op(opType, [value, g.float(16)]))
      expect(rotarySwitches(graph)).toEqual([])
    }
    expect([16, 17, 40].map((length) => sideOf([16, 32], length))).toEqual([0, 1, 2])
  })

  it.each(golden.texts.map((text) => [text.prompt.length, text] as const))(
    'writes what transformers writes after a prompt of %i tokens',
    async (_, text) => {
      expect(await write([text])).toEqual([text.tokens])
    },
  )

  it('writes what transformers writes across the switch, alone and beside others', async () => {
    expect(await write([golden.crossing])).toEqual([golden.crossing.tokens])
    const texts = [golden.crossing, ...golden.texts, golden.crossing].map(({ prompt, tokens }) => {
      return session.generate({ ids: [...prompt] }, { maxNewTokens: tokens.length, temperature: 0 })
    })
    const written = (await Promise.all(texts)).map(({ tokenIds }) => tokenIds)
    expect(written).toEqual([golden.crossing, ...golden.texts, golden.crossing].map(({ tokens }) => tokens))
  })

  it('lets texts of one side alone share steps', async () => {
    const runs = vi.spyOn(TextBatch.prototype, 'step')
    const lengths: number[][] = []
    runs.mockImplementation(function (this: TextBatch, most) {
      lengths.push(this.lengths)
      return step.call(this, most)
    })
    expect(await write(golden.texts)).toEqual(golden.texts.map(({ tokens }) => tokens))
    const sides = lengths.map((run) => new Set(run.map((length) => sideOf([golden.switch], length))).size)
    expect(Math.max(...sides)).toBe(1)
    // There are two texts on each side of the switch.
    for (const isLong of [false, true]) {
      expect(lengths.some((run) => run.length === 2 && run[0] > golden.switch === isLong)).toBe(true)
    }
    const calls = await Promise.all(golden.texts.map((text) => write([text])))
    expect(calls).toEqual(golden.texts.map(({ tokens }) => [tokens]))
  })

  it('reads a long prompt in pieces, the first of which crosses the switch', async () => {
    const feeds = recordingRuntime()
    const recorded = await ModelSession.open(await openModel('tests/golden/long-rope', feeds))
    vi.spyOn(TextBatch.prototype, 'step').mockImplementation(function (this: TextBatch) {
      return step.call(this, 5)
    })
    for (const { prompt, tokens } of golden.texts) {
      feeds.fed.length = 0
      const { tokenIds } = await recorded.generate({ ids: [...prompt] }, { maxNewTokens: 5, temperature: 0 })
      expect(tokenIds).toEqual(tokens)
      const widths = feeds.fed.map(({ attention_mask: { dims } }) => dims[1])
      const [first, second] = prompt.length > golden.switch ? [golden.switch + 1, prompt.length] : [5, prompt.length]
      expect(widths.slice(0, 2)).toEqual([first, Math.min(second, first + 5)])
    }
    await recorded.dispose()
  })

  it('begins after tokens that a text on the same side has read, and after no others', async () => {
    const cached = async (kept: readonly number[], prompt: readonly number[]) => {
      const [stored, plain] = [await ModelSession.open(model), await ModelSession.open(model, { prefixCache: 0 })]
      await stored.generate({ ids: [...kept] }, { maxNewTokens: 1, temperature: 0 })
      const texts = [stored, plain].map((open) => {
        return open.generate({ ids: [...prompt] }, { maxNewTokens: 6, temperature: 0 })
      })
      const [got, expected] = await Promise.all(texts)
      expect(got.tokenIds).toEqual(expected.tokenIds)
      await stored.dispose()
      await plain.dispose()
      return got.cachedTokens
    }
    const long = golden.texts[2].prompt
    const [near, far] = [long.slice(0, 37), [...long, 5, 6]]
    expect(await cached(near, near)).toBe(36)
    expect(await cached(near, far)).toBe(0)
    expect(await cached(far, near)).toBe(0)
    expect(await cached(far, [...long.slice(0, 45), 7, 7])).toBe(45)
    expect(await cached(far, [...long.slice(0, 35), 7, 7, 7, 7, 7, 7, 7])).toBe(35)
  })
})
