// Writes GGUF version 3: metadata, the list of tensors, and their bytes, each aligned to 32.

import type { ByteSink } from '../../base/bytes.js'
import { concatBytes } from '../../base/bytes.js'
import { elementCount } from '../../base/tensor.js'
import { type GgufFloat, typeNumber } from './types.js'

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
  /** In its type; asked for when its turn comes. */
  bytes(): Uint8Array | Promise<Uint8Array>
}

/**
 * Writes a whole file into a sink, which stays the caller's to commit. A tensor is written while the next one is read.
 *
 * @param onTensor called after each tensor
 */
export async function writeGguf(
  sink: ByteSink,
  metadata: ReadonlyMap<string, WrittenValue>,
  tensors: readonly WrittenTensor[],
  onTensor?: (name: string) => Promise<void>,
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
  await sink.write(concatBytes([header, padding(header.byteLength)]))
  // Its failure belongs to the tensor that is awaited later, also where a write fails before.
  const ask = async (tensor: WrittenTensor | undefined) => tensor?.bytes()
  let next = ask(tensors[0])
  for (const [i, { name }] of tensors.entries()) {
    const bytes = (await next)!
    next = ask(tensors[i + 1])
    next.catch(() => {})
    await sink.write(bytes)
    if (lengths[i] % ALIGNMENT !== 0) await sink.write(padding(lengths[i]))
    await onTensor?.(name)
  }
}

function padding(bytes: number): Uint8Array {
  return new Uint8Array(aligned(bytes) - bytes)
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
