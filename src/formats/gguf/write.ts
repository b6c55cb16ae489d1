// Writes GGUF version 3: metadata, the list of tensors, and their bytes, each aligned to 32.

import type { ByteSink } from '../../base/bytes.js'
import { concatBytes } from '../../base/bytes.js'
import { elementCount } from '../../base/tensor.js'
import { type GgufFloat, typeNumber } from './types.js'

const ALIGNMENT = 32

export type WrittenValue =
  | string
  | { readonly f32: number }
  | { readonly u32: number }
  | { readonly u32s: readonly number[] }

export interface WrittenTensor {
  readonly name: string
  /** Row-major, as in PyTorch. The last dimension is a multiple of 32 for Q8_0. */
  readonly shape: readonly number[]
  readonly dtype: GgufFloat
  /** Asked for when its turn comes. They may be put in `memory`, which has their length. */
  bytes(memory?: Uint8Array): Uint8Array | Promise<Uint8Array>
}

/** Many small writes cost more than their bytes. */
const BLOCK_BYTES = 1 << 21

/** The sink stays the caller's to commit. A block of tensors is written while the next one is read. */
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
      bytesOf([typeNumber(dtype)]),
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
    // Its failure belongs to the block that is awaited later, also where a write fails before.
    next.catch(() => {})
    for (const piece of pieces) if (piece.byteLength > 0) await sink.write(piece)
    for (const { name } of tensors) await onTensor?.(name)
  }
}

/** Tensors that are written together, each aligned. */
interface Block {
  readonly tensors: WrittenTensor[]
  byteLength: number
}

function blocksOf(tensors: readonly WrittenTensor[]): Block[] {
  const blocks: Block[] = []
  for (const tensor of tensors) {
    const bytes = aligned(byteLength(tensor))
    const last = blocks.at(-1)
    if (last === undefined || last.byteLength + bytes > BLOCK_BYTES) {
      blocks.push({ tensors: [tensor], byteLength: bytes })
    } else {
      last.tensors.push(tensor)
      last.byteLength += bytes
    }
  }
  return blocks
}

function isShared({ byteLength }: Block): boolean {
  return byteLength <= BLOCK_BYTES
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
  if (dtype === 'q8_0') return (count / 32) * 34
  return count * (dtype === 'fp32' ? 4 : 2)
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
