// What a training graph is fed besides its parameters: tokens, the rows that have a target, dropout masks.

import { DataError } from '../../base/errors.js'
import { Random } from '../../base/random.js'
import type { Feeds, RuntimeTensor } from '../../runtime/runtime.js'

/** Graph inputs of the loss: rows with a target int64 (m), [row, target] int64 (m, 2), 1/normalizer. */
export const LOSS_INPUTS = { rows: 'loss/rows', targets: 'loss/targets', scale: 'loss/scale' } as const

/** Token ids, row-major (batch, sequence). */
export interface TokenBatch {
  readonly batch: number
  readonly sequence: number
  readonly inputIds: ArrayLike<number | bigint>
  /** 1 for tokens, 0 for padding. */
  readonly attentionMask: ArrayLike<number | bigint>
  /** The token at each position (not shifted: position i predicts label i + 1); negative: no target. */
  readonly labels: ArrayLike<number>
}

/** Which masks dropout draws: equal values drop the same elements. */
export interface DropoutDraw {
  readonly seed: number
  readonly step: number
  /** Number of the run in its step. */
  readonly run: number
}

/** A dropout mask that is fed: bool (rows, k), true where an element is kept. */
export interface DropoutMask {
  readonly input: string
  readonly k: number
}

/**
 * The positions that predict a target, and which.
 *
 * @throws DataError when there is none
 */
export function targetFeeds({ batch, sequence, labels }: TokenBatch, normalizer: number): Feeds {
  const rows: number[] = []
  const targets: number[] = []
  for (let row = 0; row < batch; row++) {
    for (let i = row * sequence; i < (row + 1) * sequence - 1; i++) {
      if (labels[i + 1] < 0) continue
      targets.push(rows.length, labels[i + 1])
      rows.push(i)
    }
  }
  if (rows.length === 0) throw new DataError({ where: 'batch', what: 'no position has a target' })
  return {
    [LOSS_INPUTS.rows]: { type: 'int64', data: BigInt64Array.from(rows, BigInt), dims: [rows.length] },
    [LOSS_INPUTS.targets]: { type: 'int64', data: BigInt64Array.from(targets, BigInt), dims: [rows.length, 2] },
    [LOSS_INPUTS.scale]: { type: 'float32', data: Float32Array.of(1 / normalizer), dims: [] },
  }
}

/**
 * Targets for measuring shapes, all at the first row: it is there in models that compute logits of the last tokens alone, so
 * that those can be told by what is measured.
 */
export function firstRowFeeds(batch: TokenBatch): Feeds {
  const feeds = targetFeeds(batch, 1)
  const { dims, data } = feeds[LOSS_INPUTS.rows]
  return { ...feeds, [LOSS_INPUTS.rows]: { type: 'int64', data: new BigInt64Array(data.length), dims } }
}

/** Masks are kept with a probability of a multiple of 2⁻¹⁶: two draws from one 32-bit number. */
const RESOLUTION = 1 << 16

/** The probability of keeping an element that masks really have, for `dropout` as asked for. */
export function keepProbability(dropout: number): number {
  return Math.round((1 - dropout) * RESOLUTION) / RESOLUTION
}

/** One mask each, from (seed, step, run, layer) alone, so that a resumed run draws the same. */
export function maskFeeds(masks: readonly DropoutMask[], rows: number, dropout: number, draw: DropoutDraw): Feeds {
  const threshold = keepProbability(dropout) * RESOLUTION
  return Object.fromEntries(
    masks.map(({ input, k }) => {
      const random = new Random(draw.seed, `dropout/${draw.step}/${draw.run}/${input}`)
      const data = new Uint8Array(rows * k)
      for (let i = 0; i < data.length; i += 2) {
        const bits = random.uint32()
        data[i] = (bits & 0xffff) < threshold ? 1 : 0
        if (i + 1 < data.length) data[i + 1] = bits >>> 16 < threshold ? 1 : 0
      }
      return [input, { type: 'bool', data, dims: [rows, k] } satisfies RuntimeTensor]
    }),
  )
}

/** A batch for measuring shapes, with `targets` positions that have one. */
export function probeBatch(batch: number, sequence: number, targets: number): TokenBatch {
  const count = batch * sequence
  const labels = new Int32Array(count).fill(-1)
  let left = targets
  for (let i = 0; i < count && left > 0; i++) {
    if (i % sequence === 0) continue
    labels[i] = 0
    left--
  }
  return { batch, sequence, inputIds: new Int32Array(count), attentionMask: new Int32Array(count).fill(1), labels }
}
