// How two checkpoints of the same tensors differ, as after a merge that was unmerged.

import { decodeWeights, isWeightDtype, type WeightDtype } from '../base/dtype.js'
import { MismatchError } from '../base/errors.js'
import { elementCount, type FloatArray, formatShape } from '../base/tensor.js'
import { type Checkpoint, type CheckpointTensor, openCheckpoint, shardSource } from '../formats/checkpoint.js'
import type { MergeBase } from './format.js'
import { CHUNK_BYTES } from './plan/layout.js'

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

const NO_DIFFERENCES: ValueDifferences = { differing: 0, values: 0, largest: 0, steps: 0 }

/** Counts values that differ. Throws MismatchError when a tensor is missing, or has another type or shape. */
export async function compareCheckpoints(one: MergeBase, other: MergeBase): Promise<Differences> {
  const a = await openCheckpoint(one.directory, one.file)
  let b: Checkpoint | undefined
  try {
    b = await openCheckpoint(other.directory, other.file)
    const result: Differences = { ...NO_DIFFERENCES, tensors: [] }
    for (const [name, tensor] of a.tensors) {
      const found = await compareTensor(a, tensor, b)
      result.differing += found.differing
      result.values += found.values
      result.largest = Math.max(result.largest, found.largest)
      result.steps = Math.max(result.steps, found.steps)
      if (found.differing > 0) result.tensors.push({ name, ...found })
    }
    return result
  } finally {
    await b?.close()
    await a.close()
  }
}

async function compareTensor(
  one: Checkpoint,
  { info, shard }: CheckpointTensor,
  other: Checkpoint,
): Promise<ValueDifferences> {
  const { name, dtype, shape, offset, byteLength } = info
  const b = other.tensors.get(name)
  if (b === undefined || dtype !== b.info.dtype || formatShape(shape) !== formatShape(b.info.shape)) {
    throw new MismatchError({
      where: name,
      what: 'the original has another tensor of this name, or none',
      expected: `${dtype} ${formatShape(shape)}`,
      got: b === undefined ? 'none' : `${b.info.dtype} ${formatShape(b.info.shape)}`,
    })
  }
  // Types of less than a byte are counted by bytes.
  const size = Math.max(1, byteLength / elementCount(shape))
  const result = { ...NO_DIFFERENCES, values: byteLength / size }
  for (let at = 0; at < byteLength; at += CHUNK_BYTES) {
    const length = Math.min(CHUNK_BYTES, byteLength - at)
    const x = await shardSource(one, shard).read(offset + at, length)
    const y = await shardSource(other, b.shard).read(b.info.offset + at, length)
    compareBytes(x, y, size, isWeightDtype(dtype) ? dtype : undefined, result)
  }
  return result
}

function compareBytes(
  x: Uint8Array,
  y: Uint8Array,
  size: number,
  dtype: WeightDtype | undefined,
  result: ValueDifferences,
): void {
  let values: readonly [FloatArray, FloatArray] | undefined
  for (let at = 0; at < x.length; at += size) {
    let end = at + size
    while (end > at && x[end - 1] === y[end - 1]) end--
    if (end === at) continue
    result.differing++
    if (dtype === undefined) continue
    values ??= [decodeWeights(x, dtype), decodeWeights(y, dtype)]
    const difference = Math.abs(values[0][at / size] - values[1][at / size])
    result.largest = Math.max(result.largest, Number.isFinite(difference) ? difference : Number.POSITIVE_INFINITY)
    result.steps = Math.max(result.steps, Math.abs(Number(ordinal(x, at, size) - ordinal(y, at, size))))
  }
}

/** The place of a float among all of its type: floats of one sign are ordered as their bits are. */
function ordinal(bytes: Uint8Array, at: number, size: number): bigint {
  const view = new DataView(bytes.buffer, bytes.byteOffset + at, size)
  const bits = BigInt.asIntN(
    8 * size,
    size === 8 ? view.getBigInt64(0, true) : BigInt(size === 4 ? view.getInt32(0, true) : view.getInt16(0, true)),
  )
  return bits < 0n ? -(2n ** BigInt(8 * size - 1)) - bits : bits
}
