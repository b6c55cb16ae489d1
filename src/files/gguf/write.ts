// Writes GGUF files (ggml's docs/gguf.md, version 3): metadata, the list of tensors, and their bytes, aligned to 32.

import { type ByteSink, concatBytes } from '../../core/base/bytes.js'
import type { FloatDtype } from '../../core/base/dtype.js'
import { elementCount, roundUp } from '../../core/base/tensor.js'
import { storedSize } from './blocks.js'
import { DEFAULT_ALIGNMENT, ggmlType } from './read.js'

export type GgufFloat = FloatDtype | 'q8_0'

export type WrittenValue = string | { readonly f32: number } | { readonly stored: Uint8Array }

/** A tensor as the header describes it. */
export interface GgufSpec {
  readonly name: string
  /** Row-major, as in PyTorch. */
  readonly shape: readonly number[]
  /** The number of its type in ggml.h. */
  readonly type: number
  readonly byteLength: number
}

export interface WrittenTensor {
  readonly name: string
  /** Row-major, as in PyTorch. The last dimension is a multiple of 32 for Q8_0. */
  readonly shape: readonly number[]
  readonly dtype: GgufFloat
  /** Called when the tensor is written. */
  bytes(): Uint8Array | Promise<Uint8Array>
}

/**
 * Returns the header, and where each tensor begins. After the header and after each tensor come zeros up to the next
 * multiple of `alignment`. A value that is `stored` has the bytes of its type and itself.
 */
export function planGguf(
  metadata: ReadonlyMap<string, WrittenValue>,
  tensors: readonly GgufSpec[],
  alignment = DEFAULT_ALIGNMENT,
) {
  const parts = [bytesOf([0x46554747, 3]), size(tensors.length), size(metadata.size)]
  for (const [key, value] of metadata) parts.push(text(key), ...valueBytes(value))
  const starts: number[] = []
  let at = 0
  for (const { name, shape, type, byteLength } of tensors) {
    parts.push(text(name), bytesOf([shape.length]), ...[...shape].reverse().map(size), bytesOf([type]), size(at))
    starts.push(at)
    at += roundUp(byteLength, alignment)
  }
  const header = concatBytes(parts)
  const first = roundUp(header.byteLength, alignment)
  const padded = concatBytes([header, new Uint8Array(first - header.byteLength)])
  return { header: padded, offsets: starts.map((start) => first + start), byteLength: first + at }
}

/** Writes a file; the caller commits the sink. */
export async function writeGguf(
  sink: ByteSink,
  metadata: ReadonlyMap<string, WrittenValue>,
  tensors: readonly WrittenTensor[],
  onTensor?: (name: string) => Promise<void>,
): Promise<void> {
  const specs = tensors.map(({ name, shape, dtype }): GgufSpec => {
    return { name, shape, type: ggmlType(dtype)!, byteLength: elementCount(shape) * storedSize(dtype) }
  })
  await sink.write(planGguf(metadata, specs).header)
  for (const [i, tensor] of tensors.entries()) {
    await sink.write(await tensor.bytes())
    const { byteLength } = specs[i]
    const rest = roundUp(byteLength, DEFAULT_ALIGNMENT) - byteLength
    if (rest > 0) await sink.write(new Uint8Array(rest))
    await onTensor?.(tensor.name)
  }
}

function valueBytes(value: WrittenValue): Uint8Array[] {
  if (typeof value === 'string') return [bytesOf([8]), text(value)]
  if ('stored' in value) return [value.stored]
  return [bytesOf([6]), new Uint8Array(Float32Array.of(value.f32).buffer)]
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
