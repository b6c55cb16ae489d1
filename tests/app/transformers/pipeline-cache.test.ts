// Compares the caches that sessions of pipelines return with the whole caches of the model's own file in ONNX Runtime.

import * as ort from 'onnxruntime-node'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import type { Feeds, OrtModule } from '../../../src/api/node.js'
import { sessionsFor } from '../../../src/app/transformers/call-session.js'
import type { PipelineSession } from '../../../src/app/transformers/module.js'
import { openShared } from '../../../src/app/transformers/pipelines.js'
import { argmax } from '../../../src/run/generate/next-token.js'
import type { ModelSession } from '../../../src/run/model-session.js'
import { maxDifference, openModel, recordingRuntime } from '../../run/models.js'

type Tensors = Record<string, ort.Tensor>

/**
 * `UNION` computes attention with basic operators. The models of `FUSED` have GroupQueryAttention: the first model
 * rotates queries and keys inside it, the second before it.
 */
const UNION = 'models/union-3m'
const FUSED = ['tests/golden/models/llama-genai', 'tests/golden/models/llama-genai-rotary']
const PAST = 'past_key_values.1.value'
const PRESENT = 'present.1.value'

const { module, fed } = recordingRuntime()
const run = { dtype: 'fp32', device: 'cpu' }
let session: ModelSession
let ours: PipelineSession
let theirs: ort.InferenceSession
/** What the model is fed first. */
let empty: (batch?: number) => Tensors

/** A session of a pipeline. */
async function open(path: string) {
  const model = await openModel(path, { module: module as OrtModule })
  const shared = await openShared(model, {}, run)
  return { session: shared.session, call: sessionsFor(shared, null).model }
}

const int64 = (rows: readonly (readonly number[])[]) =>
  new ort.Tensor('int64', BigInt64Array.from(rows.flat(), BigInt), [rows.length, rows[0].length])

/** Feeds of new tokens after a cache. -1 is padding, and `hidden` is the number of padded cache tokens in each row. */
function feedsOf(rows: readonly (readonly number[])[], past: Tensors, hidden = rows.map(() => 0)): Tensors {
  const { dims } = past[PAST]
  const masks = rows.map((row, i) => [
    ...Array.from({ length: dims[2] }, (_, j) => (j < hidden[i] ? 0 : 1)),
    ...row.map((id) => (id < 0 ? 0 : 1)),
  ])
  const positions = masks.map((mask) => mask.map((_, j) => Math.max(0, mask.slice(0, j).filter(Boolean).length)))
  const feeds: Tensors = {
    input_ids: int64(rows.map((row) => row.map((id) => Math.max(0, id)))),
    attention_mask: int64(masks),
    position_ids: int64(positions.map((row) => row.slice(dims[2]))),
    ...past,
  }
  return Object.fromEntries(Object.entries(feeds).filter(([name]) => theirs.inputNames.includes(name)))
}

/** Turns outputs into the next cache inputs in the same way as transformers.js. */
const pastOf = (outputs: Tensors): Tensors =>
  Object.fromEntries(
    Object.entries(outputs).flatMap(([name, tensor]) =>
      name.startsWith('present') ? [[name.replace('present', 'past_key_values'), tensor]] : [],
    ),
  )

const runOurs = async (feeds: Tensors) => (await ours.run(feeds as unknown as Feeds)) as Tensors
const runTheirs = async (feeds: Tensors) => (await theirs.run(feeds)) as Tensors

const last = ({ logits }: Tensors) => {
  const { data, dims } = logits
  return argmax((data as Float32Array).subarray((dims[1] - 1) * dims[2], dims[1] * dims[2]))
}

/** Runs both, and checks that they give the same, caches included. */
async function both(feeds: Tensors, reference = feeds): Promise<{ ours: Tensors; theirs: Tensors }> {
  const [found, expected] = [await runOurs(feeds), await runTheirs(reference)]
  expectSame(found, expected, ['logits'])
  return { ours: found, theirs: expected }
}

function expectSame(found: Tensors, expected: Tensors, names = Object.keys(expected)) {
  for (const name of names) {
    expect(found[name].dims, name).toEqual(expected[name].dims)
    expect(found[name].type).toBe(expected[name].type)
    expect(maxDifference(found[name] as never, expected[name] as never), name).toBeLessThan(1e-4)
  }
}

describe.each([UNION, ...FUSED])('caches of pipelines: %s', (path) => {
  beforeAll(async () => {
    const opened = await open(path)
    session = opened.session
    ours = opened.call
    theirs = await ort.InferenceSession.create(`${path}/onnx/model.onnx`, { intraOpNumThreads: 1 })
    const pasts = ours.inputMetadata.filter(({ name }) => name.startsWith('past'))
    empty = (batch = 1) =>
      Object.fromEntries(
        pasts.map(({ name, shape }) => {
          const [, heads, , size] = shape as number[]
          return [name, new ort.Tensor('float32', new Float32Array(0), [batch, heads, 0, size])]
        }),
      )
  })

  afterAll(async () => {
    await session.dispose()
    await theirs.release()
  })

  it('grow where they are over a long text, and are what the model gives when they are read at the end', async () => {
    let [mine, its] = [empty(), empty()]
    let ids = [5, 6, 7, 8]
    fed.length = 0
    let outputs: Tensors = {}
    for (let step = 0; step < 70; step++) {
      const feeds = feedsOf([ids], mine)
      const result = await both(feeds, { ...feeds, ...its })
      outputs = result.ours
      ;[mine, its] = [pastOf(result.ours), pastOf(result.theirs)]
      ids = [last(result.theirs)]
      expect(outputs[PRESENT]).toBeInstanceOf(ort.Tensor)
      if (step === 69) expectSame(result.ours, result.theirs)
    }
    expect(outputs[PRESENT].size).toBe((outputs[PRESENT].data as Float32Array).length)
    // The first cache is empty, and each next array has room for 16 more tokens.
    const arrays = new Set(fed.map((feeds) => feeds[PAST].data))
    expect(arrays.size).toBe(6)
  })

  it('go on from an older place as often as somebody wants, also at the same time', async () => {
    const start = await both(feedsOf([[5, 6, 7]], empty()))
    const [mine, its] = [pastOf(start.ours), pastOf(start.theirs)]
    const next = (id: number, past: Tensors) => feedsOf([[id]], past)
    const first = await both(next(9, mine), next(9, its))
    const second = await both(next(10, mine), next(10, its))
    const longer = await both(next(11, pastOf(first.ours)), next(11, pastOf(first.theirs)))
    const [a, b] = await Promise.all([12, 13].map((id) => runOurs(next(id, pastOf(longer.ours)))))
    expectSame(a, await runTheirs(next(12, pastOf(longer.theirs))))
    expectSame(b, await runTheirs(next(13, pastOf(longer.theirs))))
    for (const { ours, theirs } of [start, first, second, longer]) expectSame(ours, theirs)
  })

  it('that somebody read, changed, cut or put together anew count as they are fed', async () => {
    const start = await both(feedsOf([[5, 6, 7]], empty()))
    const mine = pastOf(start.ours)
    const copies = (past: Tensors): Tensors =>
      Object.fromEntries(
        Object.entries(past).map(([name, { data, dims }]) => [
          name,
          new ort.Tensor('float32', (data as Float32Array).slice(), dims),
        ]),
      )
    const values = mine[PAST].data as Float32Array
    values.fill(0.25)
    const changed = copies(mine)
    expect((changed[PAST].data as Float32Array)[3]).toBe(0.25)
    const after = await both(feedsOf([[8]], mine), feedsOf([[8]], changed))
    expectSame(after.ours, after.theirs)
    // One tensor comes from the newest cache, and all others from an older cache.
    const other = await both(feedsOf([[15, 16, 17]], empty()))
    const mixed = { ...pastOf(other.ours), [PAST]: mine[PAST] }
    await both(feedsOf([[8]], mixed), feedsOf([[8]], { ...pastOf(other.theirs), [PAST]: changed[PAST] }))
    // Keys and values have the same shape, and are swapped here.
    const key = PAST.replace('.value', '.key')
    const exchange = (past: Tensors) => ({ ...past, [PAST]: past[key], [key]: past[PAST] })
    await both(feedsOf([[8]], exchange(pastOf(other.ours))), feedsOf([[8]], exchange(pastOf(other.theirs))))
    const cut = (past: Tensors): Tensors =>
      Object.fromEntries(
        Object.entries(past).map(
          ([
            name,
            {
              data,
              dims: [batch, heads, length, size],
            },
          ]) => {
            const rows = Array.from({ length: heads }, (_, head) =>
              (data as Float32Array).slice(head * length * size, (head * length + 2) * size),
            )
            return [
              name,
              new ort.Tensor('float32', Float32Array.from(rows.flatMap((row) => [...row])), [batch, heads, 2, size]),
            ]
          },
        ),
      )
    await both(feedsOf([[9]], cut(pastOf(after.ours))), feedsOf([[9]], cut(pastOf(after.theirs))))
  })

  it('whose run failed go on, and disposed ones are refused', async () => {
    const start = await both(feedsOf([[5, 6, 7]], empty()))
    const [mine, its] = [pastOf(start.ours), pastOf(start.theirs)]
    fed.length = 0
    await expect(runOurs(feedsOf([[1e6]], mine))).rejects.toThrow()
    const next = await both(feedsOf([[8]], mine), feedsOf([[8]], its))
    expect(fed[1][PAST].data).toBe(fed[0][PAST].data)
    expectSame(next.ours, next.theirs)
    const past = pastOf(next.ours)
    past[PAST].dispose()
    await expect(runOurs(feedsOf([[9]], past))).rejects.toThrow(/location/)
    expect(() => past[PAST].data).toThrow(/disposed/)
  })

  it('of several texts that are filled up on the left give what each text gives alone', async () => {
    const texts = [
      [5, 6, 7, 8],
      [9, 10],
    ]
    const check = async (outputs: Tensors) => {
      const [, sequence, width] = outputs.logits.dims
      for (const [i, ids] of texts.entries()) {
        const alone = await runTheirs(feedsOf([ids], empty()))
        const end = (i + 1) * sequence * width
        const row = (outputs.logits.data as Float32Array).subarray(end - width, end)
        const expected = (alone.logits.data as Float32Array).subarray(-width)
        expect(maxDifference(row, expected)).toBeLessThan(1e-4)
      }
      return pastOf(outputs)
    }
    let past = await check(await runOurs(feedsOf([texts[0], [-1, -1, ...texts[1]]], empty(2))))
    const steps = [
      [[11], [12]],
      [[13], [14]],
    ]
    for (const added of steps) {
      added.forEach((ids, i) => void texts[i].push(...ids))
      past = await check(await runOurs(feedsOf(added, past, [0, 2])))
    }
    const { dims, data } = past[PAST]
    expect(dims[2]).toBe(texts[0].length)
    expect((data as Float32Array).length).toBe(dims.reduce((product, dim) => product * dim, 1))
  })

  it('of another session are copied', async () => {
    const other = await open(path)
    const start = await runTheirs(feedsOf([[5, 6, 7]], empty()))
    const foreign = (await other.call.run(feedsOf([[5, 6, 7]], empty()) as never)) as Tensors
    await both(feedsOf([[8]], pastOf(foreign)), feedsOf([[8]], pastOf(start)))
    expectSame(foreign, start)
    await other.session.dispose()
  })
})
