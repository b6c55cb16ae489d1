// Writes GGUF files (ggml's docs/gguf.md, version 3): metadata, the list of tensors, and their bytes, aligned to 32.

import { type ByteSink, concatBytes } from '../base/bytes.js'
import { encodeFloats, type FloatDtype, f32ToF16, sizeOf } from '../base/dtype.js'
import { elementCount } from '../base/tensor.js'

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
  /** Called when the tensor's turn comes. The bytes may be put into `memory`, which has the right length. */
  bytes(memory?: Uint8Array): Uint8Array | Promise<Uint8Array>
}

/** Tensors are written together up to this size, because many small writes are slow. */
const WRITE_BYTES = 1 << 21

/** Writes a file; the caller commits the sink. One block of tensors is written while the next one is read. */
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
    at += aligned(byteLength(tensor))
  }
  const header = concatBytes(parts)
  await sink.write(concatBytes([header, padding(header.byteLength)]))
  const blocks = blocksOf(tensors)
  const largest = Math.max(0, ...blocks.map((block) => (isShared(block) ? block.byteLength : 0)))
  const memory = [new Uint8Array(largest), new Uint8Array(largest)]
  const read = async (i: number) => blocks[i] && bytesOfBlock(blocks[i], memory[i % 2])
  let next = read(0)
  for (const [i, { tensors }] of blocks.entries()) {
    const pieces = (await next)!
    next = read(i + 1)
    // If a write fails first, nobody awaits this promise: its rejection must not end the process.
    next.catch(() => {})
    for (const piece of pieces) if (piece.byteLength > 0) await sink.write(piece)
    for (const { name } of tensors) await onTensor?.(name)
  }
}

/** Tensors that are written together, each of them aligned. */
interface Block {
  readonly tensors: WrittenTensor[]
  byteLength: number
}

function blocksOf(tensors: readonly WrittenTensor[]): Block[] {
  const blocks: Block[] = []
  for (const tensor of tensors) {
    const bytes = aligned(byteLength(tensor))
    const last = blocks.at(-1)
    if (last === undefined || last.byteLength + bytes > WRITE_BYTES) {
      blocks.push({ tensors: [tensor], byteLength: bytes })
    } else {
      last.tensors.push(tensor)
      last.byteLength += bytes
    }
  }
  return blocks
}

function isShared({ byteLength }: Block): boolean {
  return byteLength <= WRITE_BYTES
}

async function bytesOfBlock(block: Block, memory: Uint8Array): Promise<Uint8Array[]> {
  const { tensors } = block
  if (!isShared(block)) return [await tensors[0].bytes(), padding(byteLength(tensors[0]))]
  const reads: Promise<void>[] = []
  let end = 0
  for (const tensor of tensors) {
    const [first, length] = [end, byteLength(tensor)]
    end += aligned(length)
    memory.fill(0, first + length, end)
    const read = async () => {
      const bytes = await tensor.bytes(memory.subarray(first, first + length))
      if (bytes.buffer !== memory.buffer) memory.set(bytes, first)
    }
    reads.push(read())
  }
  await Promise.all(reads)
  return [memory.subarray(0, end)]
}

function padding(bytes: number): Uint8Array {
  return new Uint8Array(aligned(bytes) - bytes)
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

function aligned(bytes: number): number {
  return Math.ceil(bytes / ALIGNMENT) * ALIGNMENT
}

/** Q8_0 as ggml's reference code writes it: 32 values share max|x|/127 in f16; halves round away from 0. */
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
