// Recurrent states of rank 4 that ordinary operators read, as in Falcon-H1, work as those that linear attention reads.

import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { loadModel, MemoryDirectory, type Model } from '../../src/api/node.js'
import { readAll } from '../../src/core/base/bytes.js'
import { loadTokenizer } from '../../src/model/text/tokenizer.js'
import { serializeModel } from '../../src/onnx/format/model.js'
import { Builder } from '../../src/onnx/view/builder.js'
import { Graph } from '../../src/onnx/view/graph.js'
import { ModelSession } from '../../src/run/model-session.js'
import { relativeError } from '../model/golden.js'
import { directoryOf, inThread, openModel, rowOf } from '../run/models.js'
import { int64 } from '../several-graphs.js'

/** Puts a product with 1 between each recurrent state and its reader. */
async function withReaders(path: string): Promise<Model> {
  const { onnx, onnxPath, config, close } = await openModel(path)
  const graph = new Graph(onnx.proto)
  const g = new Builder(graph, 'read')
  for (const node of graph.nodes.filter(({ opType }) => opType === 'LinearAttention')) {
    graph.setInput(node, 3, g.mul(node.input[3], g.float(1)))
  }
  const files = new Map<string, Uint8Array>([['config.json', new TextEncoder().encode(JSON.stringify(config))]])
  for (const [location, source] of onnx.files) files.set(`onnx/${location}`, await readAll(source))
  files.set(onnxPath, serializeModel(graph.toModel()))
  await close()
  return loadModel(new MemoryDirectory(Object.fromEntries(files), path), { runtime: inThread })
}

describe.each([
  'tests/golden/hybrids/granite_h/mobius',
  'tests/golden/hybrids/qwen3_5/mobius',
  'tests/golden/genai-decoders/qwen3_5',
])('%s', (path) => {
  const sessions: ModelSession<Model>[] = []
  beforeAll(async () => {
    const tokenizer = await loadTokenizer(directoryOf('models/union-3m'))
    for (const model of [await openModel(path), await withReaders(path)]) {
      sessions.push(await ModelSession.open({ ...model, tokenizer, eosTokenIds: [] }, {}, true))
    }
  })
  afterAll(() => Promise.all(sessions.map((session) => session.dispose())))

  it('writes the same texts, in a batch of unequal prompts', async () => {
    const prompts = [{ ids: [5, 17, 40, 9, 22, 31] }, { ids: [8, 12] }, { ids: [60, 3, 3, 41] }]
    const options = { maxNewTokens: 8, temperature: 0 }
    const [expected, got] = await Promise.all(sessions.map((session) => session.generate(prompts, options)))
    expect(got.map(({ tokenIds }) => tokenIds)).toEqual(expected.map(({ tokenIds }) => tokenIds))
  })

  it('goes on from fed states as from the beginning', async () => {
    const ids = [
      [5, 17, 40, 9, 22, 31, 7],
      [8, 12, 33, 21, 5, 6, 4],
    ]
    for (const session of sessions) {
      const run = (from: number, to?: number, past = {}) => {
        const rows = ids.map((row) => row.slice(from, to))
        return session.run({ input_ids: int64(rows.flat(), [2, rows[0].length]), ...past })
      }
      const whole = await run(0)
      const before = await run(0, 6)
      const past = session.inputNames.flatMap((name) => {
        const present = name.replace(/^past(_key_values)?/, 'present')
        return name.startsWith('past') ? [[name, before[present]] as const] : []
      })
      const after = await run(6, undefined, Object.fromEntries(past))
      for (const row of [0, 1])
        expect(relativeError(rowOf(after.logits, row), rowOf(whole.logits, 7 * row + 6))).toBeLessThan(1e-4)
    }
  })
})
