// If ONNX Runtime fails on the faster form of a graph, the given graph runs, with a single warning.

import { afterAll, describe, expect, it } from 'vitest'
import type { OrtModule } from '../../src/api/node.js'
import { ModelProtoSchema } from '../../src/onnx/format/gen/onnx_pb.js'
import { fromBinary } from '../../src/onnx/format/protobuf.js'
import { ModelSession } from '../../src/run/model-session.js'
import { makeAdapter, maxDifference, oneThread, openModel } from './models.js'

const model = await openModel('tests/golden/models/llama-optimum')
afterAll(() => model.close())
const adapters = { own: makeAdapter(model, /q_proj|v_proj|o_proj/) }
const expected = await ModelSession.open({ ...model, runtime: { module: oneThread } }, { adapters })
afterAll(() => expected.dispose())

/** Makes an ONNX Runtime that fails on graphs with fused attention, when they open or when they run. */
function refusing(at: 'create' | 'run'): { module: OrtModule; opened: boolean[] } {
  const opened: boolean[] = []
  const create: OrtModule['InferenceSession']['create'] = async (bytes, options) => {
    const nodes = fromBinary(ModelProtoSchema, bytes).graph?.node ?? []
    const isFused = nodes.some(({ opType }) => opType === 'GroupQueryAttention')
    opened.push(isFused)
    if (isFused && at === 'create') throw new Error('node attention/GroupQueryAttention: wrong number of heads')
    const session = await oneThread.InferenceSession.create(bytes, options)
    if (!isFused) return session
    const { inputNames, outputNames } = session
    const run = () => Promise.reject(new Error('wrong shape'))
    return { inputNames, outputNames, run, release: () => session.release() }
  }
  return { module: { ...oneThread, InferenceSession: { create } }, opened }
}

describe.each(['create', 'run'] as const)('a graph that ONNX Runtime refuses at %s', (at) => {
  it('writes the texts of the graph as it is given, and says so once', async () => {
    const { module, opened } = refusing(at)
    const warnings: string[] = []
    const extras = { onWarning: (message: string) => void warnings.push(message) }
    const session = await ModelSession.open({ ...model, runtime: { module } }, { adapters }, false, extras)
    const [texts, wanted] = await Promise.all(
      [session, expected].map((one) =>
        one.generate(['And the', 'The sea was'], { adapter: ['own', null], maxNewTokens: 6 }),
      ),
    )
    expect(texts.map(({ tokenIds }) => tokenIds)).toEqual(wanted.map(({ tokenIds }) => tokenIds))
    expect(warnings).toEqual([expect.stringMatching(/^model\.onnx runs as it is, and slower: .*(heads|wrong shape)/)])
    expect(opened).toEqual([true, false])
    await session.dispose()
  })

  it('runs raw feeds, too', async () => {
    const { module } = refusing(at)
    const session = await ModelSession.open({ ...model, runtime: { module } }, {}, false, { onWarning: () => {} })
    const input_ids = { type: 'int64', data: BigInt64Array.of(0n, 54n, 260n), dims: [1, 3] } as const
    const [made, wanted] = await Promise.all([session, expected].map((one) => one.run({ input_ids })))
    expect(maxDifference(made.logits, wanted.logits)).toBeLessThan(1e-4)
    await session.dispose()
  })
})

it('a run that fails by its feeds keeps the faster form, and its error', async () => {
  const warnings: string[] = []
  const extras = { onWarning: (message: string) => void warnings.push(message) }
  const session = await ModelSession.open({ ...model, runtime: { module: oneThread } }, {}, false, extras)
  const wrong = { type: 'int64', data: BigInt64Array.of(0n, 999_999n), dims: [1, 2] } as const
  await expect(session.run({ input_ids: wrong })).rejects.toMatchObject({ code: 'RUNTIME' })
  const { tokenIds } = await session.generate('And the', { maxNewTokens: 4 })
  expect(tokenIds).toEqual((await expected.generate('And the', { maxNewTokens: 4 })).tokenIds)
  expect(session.newRows).toBeDefined()
  expect(warnings).toEqual([])
  await session.dispose()
})
