// How two checkpoints of the same tensors differ, as after a merge that was unmerged: in half types the merge's
// rounding is lost, so that some values end beside the base's by a step.

import type { Directory } from '../base/bytes.js'
import { decodeWeights, isWeightDtype, type WeightDtype } from '../base/dtype.js'
import { MismatchError } from '../base/errors.js'
import { elementCount, type FloatArray, formatShape } from '../base/tensor.js'
import { type Checkpoint, openCheckpoint, shardSource } from '../formats/checkpoint.js'
import { CHUNK_BYTES, sizeOf } from './plan/layout.js'

/** How two lists of values differ. */
export interface ValueDifferences {
  /** Values that are not bit for bit the same, of `values` in all. */
  differing: number
  /** Compared. */
  values: number
  /** max |x − y| over the floats; Infinity where one of the two is not finite. */
  largest: number
  /** The largest difference, counted in representable values of the type (ULP). */
  steps: number
}

/** How two checkpoints of the same tensors differ. */
export interface Differences extends ValueDifferences {
  /** Only tensors with differences, by name. */
  tensors: (ValueDifferences & { name: string })[]
}

/**
 * Counts values that differ between two checkpoints of the same tensors.
 *
 * @throws MismatchError when a tensor is missing, or has another type or shape
 */
export async function compareCheckpoints(
  one: Directory,
  other: Directory,
  onePath?: string,
  otherPath?: string,
): Promise<Differences> {
  const a = await openCheckpoint(one, onePath)
  let b: Checkpoint | undefined
  try {
    b = await openCheckpoint(other, otherPath)
    const result: Differences = { ...NO_DIFFERENCES, tensors: [] }
    for (const name of a.tensors.keys()) {
      const counts = await compareTensor(name, a, b)
      add(result, counts)
      if (counts.differing > 0) result.tensors.push({ name, ...counts })
    }
    return result
  } finally {
    await b?.close()
    await a.close()
  }
}

const NO_DIFFERENCES: ValueDifferences = { differing: 0, values: 0, largest: 0, steps: 0 }

function add(sum: ValueDifferences, { differing, values, largest, steps }: ValueDifferences): void {
  sum.differing += differing
  sum.values += values
  sum.largest = Math.max(sum.largest, largest)
  sum.steps = Math.max(sum.steps, steps)
}

async function compareTensor(name: string, one: Checkpoint, other: Checkpoint): Promise<ValueDifferences> {
  const a = one.tensors.get(name)!
  const b = other.tensors.get(name)
  if (b === undefined || a.info.dtype !== b.info.dtype || formatShape(a.info.shape) !== formatShape(b.info.shape)) {
    throw new MismatchError({
      where: name,
      what: 'the original has another tensor of this name, or none',
      expected: `${a.info.dtype} ${formatShape(a.info.shape)}`,
      got: b === undefined ? 'none' : `${b.info.dtype} ${formatShape(b.info.shape)}`,
    })
  }
  const { dtype, byteLength } = a.info
  // Types of less than a byte are counted by bytes.
  const size = Math.max(1, byteLength / elementCount(a.info.shape))
  const result = { ...NO_DIFFERENCES }
  for (let at = 0; at < byteLength; at += CHUNK_BYTES) {
    const length = Math.min(CHUNK_BYTES, byteLength - at)
    const x = await shardSource(one, a.shard).read(a.info.offset + at, length)
    const y = await shardSource(other, b.shard).read(b.info.offset + at, length)
    add(result, isWeightDtype(dtype) ? compareFloats(x, y, dtype) : compareBytes(x, y, size))
  }
  return result
}

/** @param size bytes of a value */
function compareBytes(x: Uint8Array, y: Uint8Array, size: number): ValueDifferences {
  let differing = 0
  for (let i = 0; i < x.length; i += size) {
    if (x.subarray(i, i + size).some((byte, j) => byte !== y[i + j])) differing++
  }
  return { ...NO_DIFFERENCES, differing, values: x.length / size }
}

function compareFloats(x: Uint8Array, y: Uint8Array, dtype: WeightDtype): ValueDifferences {
  const [p, q] = [bitsOf(x, dtype), bitsOf(y, dtype)]
  const result = { ...NO_DIFFERENCES, values: p.length }
  let values: readonly [FloatArray, FloatArray] | undefined
  for (let i = 0; i < p.length; i++) {
    if (p[i] === q[i]) continue
    result.differing++
    values ??= [decodeWeights(x, dtype), decodeWeights(y, dtype)]
    const difference = Math.abs(values[0][i] - values[1][i])
    result.largest = Math.max(result.largest, Number.isFinite(difference) ? difference : Number.POSITIVE_INFINITY)
    const steps = ordinal(p[i], dtype) - ordinal(q[i], dtype)
    result.steps = Math.max(result.steps, Number(steps < 0n ? -steps : steps))
  }
  return result
}

function bitsOf(bytes: Uint8Array, dtype: WeightDtype): BigInt64Array | Int32Array | Int16Array {
  const { buffer } = Uint8Array.from(bytes)
  if (dtype === 'fp64') return new BigInt64Array(buffer)
  return dtype === 'fp32' ? new Int32Array(buffer) : new Int16Array(buffer)
}

/** The place of a float among all of its type. Floats of one sign are ordered as their bits are. */
function ordinal(bits: number | bigint, dtype: WeightDtype): bigint {
  const value = BigInt(bits)
  return value < 0n ? -(2n ** BigInt(8 * sizeOf(dtype) - 1)) - value : value
}
