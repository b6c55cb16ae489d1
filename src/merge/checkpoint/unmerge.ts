// Takes adapters out of a merged checkpoint: W' − Σ weight · s·B·A, rounded once. In half types the merge's rounding is lost, so
// that some values end beside the base's by a step: compareCheckpoints counts them when the original is at hand.

import type { Directory } from '../../base/bytes.js'
import { MismatchError } from '../../base/errors.js'
import { formatShape } from '../../base/tensor.js'
import { type Checkpoint, openCheckpoint, shardSource } from '../../formats/checkpoint.js'
import { isFloatDtype } from '../../formats/safetensors.js'
import { CHUNK_BYTES, sizeOf } from './layout.js'
import {
  type AdapterInput,
  type CheckpointReport,
  type MergeCheckpointOptions,
  writeMerge,
} from './merge-checkpoint.js'

export interface UnmergeOptions extends Omit<MergeCheckpointOptions, 'dtype'> {
  /** The base as it was: how many values differ from it is counted. */
  original?: Directory | undefined
  /** Its file in that folder. */
  originalPath?: string | undefined
}

export interface Differences {
  /** Values that are not bit for bit the same, of `values` in all. */
  differing: number
  values: number
  /** Only tensors with differences. */
  tensors: { name: string; differing: number; values: number }[]
}

export interface UnmergeReport extends CheckpointReport {
  /** Undefined without an original. */
  differences: Differences | undefined
}

/**
 * Writes the base back from a merged checkpoint and the adapters that are in it, with their weights. Exact only where the merge
 * lost nothing to rounding: in bf16 most values come back, and the others are one step off or, near zero, a few.
 *
 * @throws what mergeCheckpoint throws; MismatchError when the original has other tensors
 */
export async function unmergeCheckpoint(
  merged: Directory,
  adapters: AdapterInput | readonly AdapterInput[],
  out: Directory,
  options: UnmergeOptions = {},
): Promise<UnmergeReport> {
  const { original, originalPath, ...rest } = options
  const report = await writeMerge(merged, adapters, out, rest, -1)
  const isSingle = report.out !== out.name
  const differences =
    original &&
    (await compareCheckpoints(
      out,
      original,
      isSingle ? report.out.slice(out.name.length + 1) : undefined,
      originalPath,
    ))
  return { ...report, differences }
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
    const result: Differences = { differing: 0, values: 0, tensors: [] }
    for (const name of a.tensors.keys()) {
      const counts = await compareTensor(name, a, b)
      result.differing += counts.differing
      result.values += counts.values
      if (counts.differing > 0) result.tensors.push({ name, ...counts })
    }
    return result
  } finally {
    await b?.close()
    await a.close()
  }
}

async function compareTensor(name: string, one: Checkpoint, other: Checkpoint) {
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
  const size = isFloatDtype(dtype) ? sizeOf(dtype) : 1
  let differing = 0
  for (let at = 0; at < byteLength; at += CHUNK_BYTES) {
    const length = Math.min(CHUNK_BYTES, byteLength - at)
    const x = await shardSource(one, a.shard).read(a.info.offset + at, length)
    const y = await shardSource(other, b.shard).read(b.info.offset + at, length)
    for (let i = 0; i < length; i += size) {
      for (let j = i; j < i + size; j++) {
        if (x[j] === y[j]) continue
        differing++
        break
      }
    }
  }
  return { differing, values: byteLength / size }
}
