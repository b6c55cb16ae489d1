// Writes GGUF version 3: metadata, the list of tensors, and their bytes, each aligned to 32.

import type { ByteSink } from '../../base/bytes.js'
import { concatBytes } from '../../base/bytes.js'
import { elementCount } from '../../base/tensor.js'
import { encodeGguf, type GgufFloat, typeNumber } from './types.js'

const ALIGNMENT = 32

/** A metadata value that is written: text, or a number with its type. */
export type WrittenValue =
  | string
  | { readonly f32: number }
  | { readonly u32: number }
  | { readonly u32s: readonly number[] }

/** A tensor that is written. */
export interface WrittenTensor {
  readonly name: string
  /** Row-major, as in PyTorch. The last dimension is a multiple of 32 for Q8_0. */
  readonly shape: readonly number[]
  readonly dtype: GgufFloat
  /** Made when its turn comes. */
  values(): Float32Array
}

/** Writes a whole file into a sink, which stays the caller's to commit. One tensor's bytes are in memory at a time. */
export async function writeGguf(
  sink: ByteSink,
  metadata: ReadonlyMap<string, WrittenValue>,
  tensors: readonly WrittenTensor[],
): Promise<void> {
  const parts = [bytesOf([0x46554747, 3]), size(tensors.length), size(metadata.size)]
  for (const [key, value] of metadata) parts.push(text(key), ...valueBytes(value))
  let at = 0
  const lengths = tensors.map(({ dtype, shape }) => byteLength(dtype, shape))
  tensors.forEach(({ name, shape, dtype }, i) => {
    parts.push(
      text(name),
      bytesOf([shape.length]),
      ...[...shape].reverse().map(size),
      bytesOf([typeNumber(dtype)]),
      size(at),
    )
    at += aligned(lengths[i])
  })
  const header = concatBytes(parts)
  await sink.write(header)
  await sink.write(new Uint8Array(aligned(header.byteLength) - header.byteLength))
  for (const [i, { dtype, values }] of tensors.entries()) {
    await sink.write(encodeGguf(values(), dtype))
    await sink.write(new Uint8Array(aligned(lengths[i]) - lengths[i]))
  }
}

function byteLength(dtype: GgufFloat, shape: readonly number[]): number {
  const count = elementCount(shape)
  if (dtype === 'Q8_0') return (count / 32) * 34
  return count * (dtype === 'F32' ? 4 : 2)
}

function valueBytes(value: WrittenValue): Uint8Array[] {
  if (typeof value === 'string') return [bytesOf([8]), text(value)]
  if ('f32' in value) return [bytesOf([6]), new Uint8Array(Float32Array.of(value.f32).buffer)]
  if ('u32' in value) return [bytesOf([4, value.u32])]
  return [bytesOf([9, 4]), size(value.u32s.length), bytesOf(value.u32s)]
}

function text(value: string): Uint8Array {
  const bytes = new TextEncoder().encode(value)
  return concatBytes([size(bytes.byteLength), bytes])
}

function size(value: number): Uint8Array {
  return new Uint8Array(BigUint64Array.of(BigInt(value)).buffer)
}

function bytesOf(values: readonly number[]): Uint8Array {
  return new Uint8Array(Uint32Array.from(values).buffer)
}

function aligned(bytes: number): number {
  return Math.ceil(bytes / ALIGNMENT) * ALIGNMENT
}
