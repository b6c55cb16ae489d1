// The difference between a tensor in two checkpoints. It is read in blocks of rows, and kept in memory if it is small.

import { readThere, sameContents } from '../../core/base/bytes.js'
import { decodeFloats, decodeWeights, requireWeightDtype, sizeOf } from '../../core/base/dtype.js'
import { MismatchError } from '../../core/base/errors.js'
import { type FloatArray, formatShape, isAllFinite, type Matrix } from '../../core/base/tensor.js'
import type { StreamedMatrix } from '../../core/linalg/streamed-svd.js'
import { type Checkpoint, type CheckpointTensor, shardSource } from '../../files/checkpoint.js'
import { notFinite } from '../../lora/part.js'

export interface Located {
  readonly checkpoint: Checkpoint
  readonly tensor: CheckpointTensor
}

export function requireSameShape(where: string, shapeA: readonly number[], shapeB: readonly number[]): void {
  const [expected, got] = [formatShape(shapeA), formatShape(shapeB)]
  if (expected === got) return
  throw new MismatchError({ where, what: 'not the same tensor in both checkpoints', expected, got })
}

/** The number of values in a block: a few MB in f32. */
const BLOCK_VALUES = 1 << 19

const MAX_VALUE_BYTES = 8

/** A difference of up to this many values stays in memory, so that its files are read only once. */
export const KEPT_VALUES = 1 << 24

/** Memory that serves one pair of tensors after the other. New arrays would stay until the garbage collector runs. */
export class DifferenceMemory {
  #sides: readonly Side[] = []
  #kept = new Float32Array()

  sides(values: number): readonly Side[] {
    if (this.#sides.length === 0 || this.#sides[0].values.length < values) {
      const count = Math.max(values, BLOCK_VALUES)
      this.#sides = [0, 1].map(() => ({
        bytes: new Uint8Array(count * MAX_VALUE_BYTES),
        values: new Float32Array(count),
      }))
    }
    return this.#sides
  }

  kept(values: number): Float32Array {
    if (this.#kept.length < values) this.#kept = new Float32Array(values)
    return this.#kept.subarray(0, values)
  }

  /** Frees the memory immediately, by sending it to a closed port, instead of waiting for the garbage collector. */
  async release(): Promise<void> {
    const { port1, port2 } = new MessageChannel()
    port1.postMessage(undefined, [
      this.#kept.buffer,
      ...this.#sides.flatMap((side) => [side.bytes.buffer, side.values.buffer]),
    ])
    port1.close()
    port2.close()
    this.#kept = new Float32Array()
    this.#sides = []
    await new Promise((resolve) => setTimeout(resolve, 0))
  }
}

interface Side {
  readonly bytes: Uint8Array<ArrayBuffer>
  readonly values: Float32Array<ArrayBuffer>
}

/**
 * Computes ‖tuned − base‖, ‖base‖ (Frobenius) and the difference itself, and reads both tensors once. Use the result
 * before the memory serves the next pair.
 */
export async function differenceOf(base: Located, tuned: Located, memory: DifferenceMemory, keptValues = KEPT_VALUES) {
  const { shape } = base.tensor.info
  const rows = shape.length > 1 ? shape.slice(0, -1).reduce((a, b) => a * b, 1) : 1
  const k = shape.at(-1) ?? 1
  const kept = rows * k <= keptValues ? memory.kept(rows * k) : undefined
  let [energy, baseEnergy, isChanged] = [0, 0, false]
  const rowEnergies = new Float64Array(rows)
  for (let first = 0; first < rows; first += blockRows(k)) {
    const count = Math.min(blockRows(k), rows - first)
    const [before, after] = await readBoth(base, tuned, { first, count, k }, memory)
    for (let i = 0; i < count; i++) {
      let rowEnergy = 0
      for (let at = i * k; at < (i + 1) * k; at++) {
        const change = Math.fround(after[at] - before[at])
        baseEnergy += before[at] * before[at]
        rowEnergy += change * change
        if (kept !== undefined) kept[first * k + at] = change
      }
      rowEnergies[first + i] = rowEnergy
      energy += rowEnergy
      if (rowEnergy !== 0) isChanged = true
    }
  }
  return {
    isChanged,
    norm: Math.sqrt(energy),
    baseNorm: Math.sqrt(baseEnergy),
    matrix: ({ first, count } = { first: 0, count: rows }): StreamedMatrix => ({
      shape: [count, k],
      energy: rowEnergies.subarray(first, first + count).reduce((sum, value) => sum + value, 0),
      async forEachBlock(use) {
        // A kept difference is passed on in blocks too, because a product copies its operands.
        for (let at = 0; at < count; at += blockRows(k)) {
          const rows = { first: first + at, count: Math.min(blockRows(k), count - at), k }
          const [from, to] = [rows.first * k, (rows.first + rows.count) * k]
          const block: Matrix = kept
            ? { data: kept.subarray(from, to), shape: [rows.count, k] }
            : await differenceRows(base, tuned, rows, memory)
          use(block, at)
        }
      },
    }),
  }
}

function blockRows(k: number): number {
  return Math.max(1, Math.floor(BLOCK_VALUES / k))
}

interface Rows {
  readonly first: number
  readonly count: number
  readonly k: number
}

async function differenceRows(base: Located, tuned: Located, rows: Rows, memory: DifferenceMemory): Promise<Matrix> {
  const [before, after] = await readBoth(base, tuned, rows, memory)
  const data = memory.sides(before.length)[0].values.subarray(0, before.length)
  for (let i = 0; i < data.length; i++) data[i] = after[i] - before[i]
  return { data, shape: [rows.count, rows.k] }
}

async function readBoth(base: Located, tuned: Located, rows: Rows, memory: DifferenceMemory): Promise<FloatArray[]> {
  const sides = memory.sides(rows.count * rows.k)
  return Promise.all([base, tuned].map((located, i) => readRows(located, rows, sides[i])))
}

async function readRows({ checkpoint, tensor }: Located, { first, count, k }: Rows, side: Side): Promise<FloatArray> {
  const { info, shard } = tensor
  const { offset, name } = info
  const source = shardSource(checkpoint, shard)
  const what = 'a tensor of this type has no difference that can be computed'
  const hint = 'Take the checkpoints as they were before quantization'
  const dtype = requireWeightDtype(info.dtype, `${source.name}: ${name}`, what, hint)
  const rowBytes = sizeOf(dtype) * k
  const bytes = await readThere(source, offset + first * rowBytes, count * rowBytes, side.bytes)
  const values = dtype === 'fp64' ? decodeWeights(bytes, dtype) : decodeFloats(bytes, dtype, side.values)
  if (isAllFinite(values)) return values
  throw notFinite(`${source.name}: ${name}`)
}

export async function hasSameBytes(base: Located, tuned: Located): Promise<boolean> {
  if (base.tensor.info.dtype !== tuned.tensor.info.dtype) return false
  const [before, after] = [base, tuned].map(({ checkpoint, tensor: { info, shard } }) => {
    return { ...info, source: shardSource(checkpoint, shard) }
  })
  return sameContents(before, after)
}
