import { describe, expect, it } from 'vitest'
import type { Feeds, OnnxModel } from '../../src/api/node.js'
import { injectLora, ROWS_INPUT } from '../../src/model/inject/inject.js'
import { tokenInputs } from '../../src/model/inputs/tokens.js'
import { findLinears, type Linear } from '../../src/model/match/linears.js'
import { sessionModel } from '../../src/model/session-model.js'
import { loadNodeRuntime } from '../../src/onnx/runtime/node/runtime.js'
import type { RuntimeSession } from '../../src/onnx/runtime/runtime.js'
import { Graph } from '../../src/onnx/view/graph.js'
import { groupFeeds, inputMajor } from '../../src/run/adapters/site-feeds.js'
import { MODELS, openModel, relativeError, UNION } from './golden.js'

const runtime = await loadNodeRuntime()
const tokens = { batch: 2, sequence: 5, inputIds: [3, 1, 4, 1, 5, 9, 2, 6, 5, 3], attentionMask: Array(10).fill(1) }

async function adapted(model: OnnxModel, choose: (linear: Linear) => boolean, isInputMajor = false) {
  const graph = new Graph(model.proto)
  const linears = findLinears(graph).filter(choose)
  const { shared } = injectLora(graph, linears, undefined, isInputMajor)
  const session = await runtime.createSession(await sessionModel(model, graph.toModel()), { threads: 1 })
  return { session, linears, shared, isInputMajor }
}

/** Makes A (r, k) and s·B (d, r) of each module, or their transposes. The values are a wave times `size`, or zero. */
function factors(
  { linears, shared, isInputMajor }: Omit<Awaited<ReturnType<typeof adapted>>, 'session'>,
  rank: (name: string) => number,
  sizeB: number,
): Feeds {
  const wave = (length: number, size: number, phase: number) =>
    Float32Array.from({ length }, (_, i) => size * Math.sin(phase + 1.7 * i))
  const own = new Map(
    linears.map(({ name, k, d }, i) => {
      const site = { kind: 'linear' as const, module: name, k, d, roles: new Set(['A', 'B'] as const) }
      const r = rank(name)
      const nothing = { scale: undefined, shift: undefined, replaced: undefined, replacesBias: false }
      const parts = { rank: r, weightA: wave(r * k, 0.3, i), weightB: wave(d * r, sizeB, -i) }
      return [name, { site, factors: { kind: site.kind, ...nothing, ...parts } }]
    }),
  )
  const together = new Set(shared.flat())
  const alone = [...own.keys()].filter((name) => !together.has(name)).map((name) => [name])
  const groups = [...shared, ...alone].map((names) => names.map((name) => own.get(name)!))
  const feedsOf = (group: (typeof groups)[number]) =>
    groupFeeds(
      group.map(({ site }) => site),
      group.map(({ factors }) => [factors]),
      undefined,
      0,
    )
  const feeds: Feeds = Object.assign({}, ...groups.map(feedsOf))
  const sites = groups.map((group) => group.map(({ site }) => site))
  return isInputMajor ? inputMajor(sites, feeds) : feeds
}

async function logits(session: RuntimeSession, model: OnnxModel, feeds: Feeds): Promise<Float32Array> {
  const inputs = tokenInputs(new Graph(model.proto))
  const rows: Feeds = session.inputNames.includes(ROWS_INPUT)
    ? { [ROWS_INPUT]: { type: 'int64', data: BigInt64Array.of(1n), dims: [1] } }
    : {}
  const outputs = await session.run({ ...inputs.feeds(tokens), ...inputs.emptyCache(2), ...rows, ...feeds }, ['logits'])
  return outputs.logits.data as Float32Array
}

const everything = () => true

describe.each([
  UNION,
  ...['llama-optimum', 'llama-genai', 'llama-dynamo', 'gpt2-optimum', 'llama-q4'].map((n) => `${MODELS}/${n}`),
])('%s', (folder) => {
  it('with B = 0, and with rank 0, gives what it gave; factors in both layouts give the same', async () => {
    const model = await openModel(folder)
    const plain = await runtime.createSession(await sessionModel(model, model.proto), { threads: 1 })
    const expected = await logits(plain, model, {})
    const { session, ...layers } = await adapted(model, everything)
    for (const feeds of [factors(layers, () => 4, 0), factors(layers, () => 0, 0)]) {
      expect(relativeError(await logits(session, model, feeds), expected)).toBeLessThan(1e-6)
    }
    const changed = await logits(
      session,
      model,
      factors(layers, () => 4, 0.1),
    )
    expect(relativeError(changed, expected)).toBeGreaterThan(1e-3)
    const other = await adapted(model, everything, true)
    const same = await logits(
      other.session,
      model,
      factors(other, () => 4, 0.1),
    )
    expect(relativeError(same, changed)).toBeLessThan(1e-5)
    for (const opened of [plain, session, other.session]) await opened.dispose()
    await model.close()
  })
})

describe('fused layers', () => {
  it('give what separate ones give, adapted in part or in whole', async () => {
    const fused = await openModel(`${MODELS}/llama-genai`)
    const separate = await openModel(`${MODELS}/llama-genai-rotary`)
    for (const names of [/[qkv]_proj/, /[qv]_proj/, /k_proj/, /v_proj/]) {
      const choose = ({ name }: Linear) => names.test(name)
      const [a, b] = [await adapted(fused, choose), await adapted(separate, choose)]
      const rank = (name: string) => (name.includes('q_proj') ? 3 : 2)
      const [actual, expected] = [
        await logits(a.session, fused, factors(a, rank, 0.2)),
        await logits(b.session, separate, factors(b, rank, 0.2)),
      ]
      expect(relativeError(actual, expected)).toBeLessThan(1e-5)
      await a.session.dispose()
      await b.session.dispose()
    }
    await fused.close()
    await separate.close()
  })
})

it('a linear layer whose output is the graph output keeps its name', async () => {
  const model = await openModel(`${MODELS}/llama-genai`)
  const { session } = await adapted(model, ({ isHead }) => isHead)
  expect(session.outputNames).toContain('logits')
  await session.dispose()
  await model.close()
})
