// The difference of a tensor in two checkpoints as a matrix that is read in blocks of rows; it is kept where it is small.

import { decodeWeights, isWeightDtype, type WeightDtype } from '../base/dtype.js'
import { UnsupportedError } from '../base/errors.js'
import { isAllFinite, type Matrix } from '../base/tensor.js'
import { type Checkpoint, type CheckpointTensor, shardSource } from '../formats/checkpoint.js'
import type { TensorInfo } from '../formats/safetensors.js'
import type { StreamedMatrix } from '../linalg/streamed-svd.js'
import { notFinite } from '../lora/factors.js'

/** A tensor in an open checkpoint. */
export interface Located {
  readonly checkpoint: Checkpoint
  readonly tensor: CheckpointTensor
}

/** How two tensors differ. */
export interface Difference {
  /** Whether any value differs. */
  readonly isChanged: boolean
  /** ‖tuned − base‖, Frobenius. */
  readonly norm: number
  /** ‖base‖ */
  readonly baseNorm: number
  /** tuned − base; a part of it with `rows`. */
  matrix(rows?: { readonly first: number; readonly count: number }): StreamedMatrix
}

/** Values of a block: some MB in f32. */
const BLOCK_VALUES = 1 << 20

/** A difference up to here stays in memory, so that its files are read once. */
export const KEPT_VALUES = 1 << 24

/**
 * Reads both tensors once.
 *
 * @param keptValues differences of at most so many values stay in memory
 * @throws UnsupportedError for a type that is no float; NumericError when a value is not finite
 */
export async function differenceOf(base: Located, tuned: Located, keptValues = KEPT_VALUES): Promise<Difference> {
  const { shape } = base.tensor.info
  const rows = shape.length > 1 ? shape.slice(0, -1).reduce((a, b) => a * b, 1) : 1
  const k = shape.at(-1) ?? 1
  const kept = rows * k <= keptValues ? new Float32Array(rows * k) : undefined
  let [energy, baseEnergy, isChanged] = [0, 0, false]
  const rowEnergies = new Float64Array(rows)
  for (let first = 0; first < rows; first += blockRows(k)) {
    const count = Math.min(blockRows(k), rows - first)
    const [own, other] = [await readRows(base, first, count, k), await readRows(tuned, first, count, k)]
    for (let i = 0; i < count; i++) {
      let rowEnergy = 0
      for (let at = i * k; at < (i + 1) * k; at++) {
        const change = Math.fround(other[at] - own[at])
        baseEnergy += own[at] * own[at]
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
    matrix: ({ first, count } = { first: 0, count: rows }) => ({
      shape: [count, k],
      energy: rowEnergies.subarray(first, first + count).reduce((sum, value) => sum + value, 0),
      async forEachBlock(use) {
        if (kept !== undefined) {
          use({ data: kept.subarray(first * k, (first + count) * k), shape: [count, k] }, 0)
          return
        }
        for (let at = 0; at < count; at += blockRows(k)) {
          const own = Math.min(blockRows(k), count - at)
          use(await differenceRows(base, tuned, first + at, own, k), at)
        }
      },
    }),
  }
}

function blockRows(k: number): number {
  return Math.max(1, Math.floor(BLOCK_VALUES / k))
}

async function differenceRows(base: Located, tuned: Located, first: number, count: number, k: number): Promise<Matrix> {
  const [own, other] = [await readRows(base, first, count, k), await readRows(tuned, first, count, k)]
  const data = new Float32Array(count * k)
  for (let i = 0; i < data.length; i++) data[i] = other[i] - own[i]
  return { data, shape: [count, k] }
}

/** Rows of a tensor, read as a matrix with its last dimension as columns. */
async function readRows({ checkpoint, tensor }: Located, first: number, count: number, k: number) {
  const { info, shard } = tensor
  const { dtype, offset, name } = info
  const source = shardSource(checkpoint, shard)
  requireFloat(info, source.name)
  const rowBytes = bytesOf(dtype as WeightDtype) * k
  const values = decodeWeights(await source.read(offset + first * rowBytes, count * rowBytes), dtype as WeightDtype)
  if (isAllFinite(values)) return values
  throw notFinite(`${source.name}: ${name}`)
}

function bytesOf(dtype: WeightDtype): number {
  return { F64: 8, F32: 4, F16: 2, BF16: 2 }[dtype]
}

/** Throws UnsupportedError unless the tensor's values are floats of 16 to 64 bits. */
export function requireFloat({ name, dtype }: TensorInfo, file: string): void {
  if (isWeightDtype(dtype)) return
  throw new UnsupportedError({
    where: `${file}: ${name}`,
    what: 'a tensor of this type has no difference that can be computed',
    expected: 'F64, F32, F16 or BF16',
    got: dtype,
    hint: 'Take the checkpoints as they were before quantization',
  })
}

/** Whether two tensors have the same bytes. */
export async function hasSameBytes(base: Located, tuned: Located): Promise<boolean> {
  const [own, other] = [base.tensor.info, tuned.tensor.info]
  if (own.dtype !== other.dtype || own.byteLength !== other.byteLength) return false
  const PIECE = 1 << 22
  for (let at = 0; at < own.byteLength; at += PIECE) {
    const length = Math.min(PIECE, own.byteLength - at)
    const [a, b] = [base, tuned].map(({ checkpoint, tensor }) => {
      return shardSource(checkpoint, tensor.shard).read(tensor.info.offset + at, length)
    })
    if (!isSame(await a, await b)) return false
  }
  return true
}

function isSame(a: Uint8Array, b: Uint8Array): boolean {
  const whole = a.byteOffset % 8 === 0 && b.byteOffset % 8 === 0 ? Math.floor(a.byteLength / 8) : 0
  const [x, y] = [
    new BigUint64Array(a.buffer, whole ? a.byteOffset : 0, whole),
    new BigUint64Array(b.buffer, whole ? b.byteOffset : 0, whole),
  ]
  for (let i = 0; i < whole; i++) if (x[i] !== y[i]) return false
  for (let i = whole * 8; i < a.byteLength; i++) if (a[i] !== b[i]) return false
  return true
}
