// Writes GGUF files (ggml's docs/gguf.md, version 3): metadata, the list of tensors, and their bytes, aligned to 32.

import { type ByteSink, concatBytes } from '../core/base/bytes.js'
import { encodeFloats, type FloatDtype, f32ToF16, sizeOf } from '../core/base/dtype.js'
import { elementCount, roundUp } from '../core/base/tensor.js'

export type GgufFloat = FloatDtype | 'q8_0'

/** The numbers of the types in ggml.h, enum ggml_type. */
const NUMBERS: Readonly<Record<GgufFloat, number>> = { fp32: 0, fp16: 1, q8_0: 8, bf16: 30 }

/** A block of q8_0 has 32 values: a scale in f16, and 32 bytes. */
const BLOCK = 32
const BLOCK_BYTES = 34

const ALIGNMENT = 32

export type WrittenValue = string | { readonly f32: number }

export interface WrittenTensor {
  readonly name: string
  /** Row-major, as in PyTorch. The last dimension is a multiple of 32 for Q8_0. */
  readonly shape: readonly number[]
  readonly dtype: GgufFloat
  /** Called when the tensor is written. */
  bytes(): Uint8Array | Promise<Uint8Array>
}

/** Writes a file; the caller commits the sink. */
export async function writeGguf(
  sink: ByteSink,
  metadata: ReadonlyMap<string, WrittenValue>,
  tensors: readonly WrittenTensor[],
  onTensor?: (name: string) => Promise<void>,
): Promise<void> {
  const parts = [bytesOf([0x46554747, 3]), size(tensors.length), size(metadata.size)]
  for (const [key, value] of metadata) parts.push(text(key), ...valueBytes(value))
  let at = 0
  for (const tensor of tensors) {
    const { name, shape, dtype } = tensor
    parts.push(
      text(name),
      bytesOf([shape.length]),
      ...[...shape].reverse().map(size),
      bytesOf([NUMBERS[dtype]]),
      size(at),
    )
    at += roundUp(byteLength(tensor), ALIGNMENT)
  }
  const header = concatBytes(parts)
  await sink.write(concatBytes([header, padding(header.byteLength)]))
  for (const tensor of tensors) {
    await sink.write(await tensor.bytes())
    const rest = padding(byteLength(tensor))
    if (rest.byteLength > 0) await sink.write(rest)
    await onTensor?.(tensor.name)
  }
}

function padding(bytes: number): Uint8Array {
  return new Uint8Array(roundUp(bytes, ALIGNMENT) - bytes)
}

function byteLength({ dtype, shape }: WrittenTensor): number {
  const count = elementCount(shape)
  return dtype === 'q8_0' ? (count / BLOCK) * BLOCK_BYTES : count * sizeOf(dtype)
}

function valueBytes(value: WrittenValue): Uint8Array[] {
  if (typeof value === 'string') return [bytesOf([8]), text(value)]
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

/** Q8_0 as ggml's reference code writes it: 32 values share the scale max|x|/127 in f16; halves round away from 0. */
export function encodeGguf(values: Float32Array, dtype: GgufFloat): Uint8Array {
  if (dtype !== 'q8_0') return encodeFloats(values, dtype)
  const blocks = values.length / BLOCK
  const bytes = new Uint8Array(blocks * BLOCK_BYTES)
  const view = new DataView(bytes.buffer)
  const scales = new Float32Array(blocks)
  for (let b = 0; b < blocks; b++) {
    let largest = 0
    for (let i = 0; i < BLOCK; i++) largest = Math.max(largest, Math.abs(values[b * BLOCK + i]))
    scales[b] = largest / 127
    const inverse = scales[b] === 0 ? 0 : Math.fround(1 / scales[b])
    for (let i = 0; i < BLOCK; i++) {
      const scaled = Math.fround(values[b * BLOCK + i] * inverse)
      view.setInt8(b * BLOCK_BYTES + 2 + i, Math.sign(scaled) * Math.floor(Math.abs(scaled) + 0.5))
    }
  }
  for (const [b, bits] of f32ToF16(scales).entries()) view.setUint16(b * BLOCK_BYTES, bits, true)
  return bytes
}
