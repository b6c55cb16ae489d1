// GGUF files (ggml's docs/gguf.md, versions 2 and 3). Reading checks the whole header and touches no tensor. Files are
// written in version 3: metadata, the list of tensors, and their bytes, each aligned to 32.

import { type ByteSink, type ByteSource, concatBytes } from '../../base/bytes.js'
import { FormatError, UnsupportedError } from '../../base/errors.js'
import { elementCount, formatShape } from '../../base/tensor.js'
import type { TensorInfo } from '../safetensors.js'
import { decodeGguf, floatOf, GGUF_TYPES, type GgufFloat, type GgufType, NUMBERS } from './types.js'

const PIECE_BYTES = 1 << 18
const MAGIC = 0x46554747
const DEFAULT_ALIGNMENT = 32
/** Models have a few dozen values and a few thousand tensors. */
const MAX_VALUES = 1 << 16
const MAX_TENSORS = 1 << 17
const MAX_NAME_BYTES = 1000
/** A chat template can take a few hundred kB. */
const MAX_TEXT_BYTES = 1 << 24
/** Lists of up to this length are kept, such as heads by layer. */
const MAX_KEPT = 4096
/** A vocabulary has a few hundred thousand entries. */
const MAX_LIST = 1 << 25
const MAX_DIMENSIONS = 4

/** For a list of more than MAX_KEPT elements, such as a tokenizer's words, only the length is kept. */
export type GgufValue =
  | number
  | bigint
  | boolean
  | string
  | readonly (number | bigint | boolean | string)[]
  | { readonly length: number }

/** A tensor of the file. Its shape is row-major, as in PyTorch: the reverse of the file's `ne`. */
export interface GgufTensor extends Omit<TensorInfo, 'dtype'> {
  readonly type: GgufType
}

export interface GgufFile {
  /** The file. The caller closes it. */
  readonly source: ByteSource
  readonly metadata: ReadonlyMap<string, GgufValue>
  readonly tensors: ReadonlyMap<string, GgufTensor>
}

/**
 * Reads and checks the header. Throws FormatError if a number, a length, a type or a range is wrong or if ranges
 * overlap, and UnsupportedError for version 1 and for big-endian files.
 */
export async function parseGguf(source: ByteSource): Promise<GgufFile> {
  const where = source.name
  const cursor = new Cursor(source)
  if ((await cursor.u32('the magic number')) !== MAGIC) {
    throw new FormatError({ where, what: 'not a GGUF file', expected: 'GGUF in the first four bytes' })
  }
  const version = await cursor.u32('the version')
  if (version !== 2 && version !== 3) {
    const isSwapped = version !== 0 && (version & 0xffff) === 0
    throw new UnsupportedError({
      where,
      what: isSwapped ? 'a GGUF file for big-endian machines' : 'a GGUF file of a version that is not read',
      expected: 'version 2 or 3',
      ...(!isSwapped && { got: String(version) }),
    })
  }
  const tensorCount = await cursor.size('the number of tensors', MAX_TENSORS)
  const valueCount = await cursor.size('the number of metadata values', MAX_VALUES)
  const metadata = new Map<string, GgufValue>()
  for (let i = 0; i < valueCount; i++) {
    const key = await cursor.text('the name of a metadata value', MAX_NAME_BYTES)
    if (metadata.has(key))
      throw new FormatError({ where: `${where}: ${key}`, what: 'a metadata value that is there twice' })
    metadata.set(key, await readValue(cursor, await cursor.u32(`the type of ${key}`), `${where}: ${key}`))
  }
  const alignment = metadata.get('general.alignment') ?? DEFAULT_ALIGNMENT
  if (typeof alignment !== 'number' || alignment < 8 || alignment > 1 << 20 || (alignment & (alignment - 1)) !== 0) {
    throw new FormatError({
      where: `${where}: general.alignment`,
      what: 'not usable',
      expected: 'a power of 2 from 8',
      got: String(alignment),
    })
  }
  const listed = new Map<string, Omit<GgufTensor, 'offset'> & { start: number }>()
  for (let i = 0; i < tensorCount; i++) {
    const tensor = await readTensorInfo(cursor, alignment, where)
    if (listed.has(tensor.name))
      throw new FormatError({ where: `${where}: ${tensor.name}`, what: 'a tensor that is there twice' })
    listed.set(tensor.name, tensor)
  }
  const dataStart = Math.ceil(cursor.offset / alignment) * alignment
  const tensors = new Map(
    [...listed].map(([name, { start, ...rest }]) => [name, { ...rest, offset: dataStart + start }]),
  )
  checkRanges([...tensors.values()], source)
  return { source, metadata, tensors }
}

/** Bytes of a value, by the number of its type; 0 for texts and lists. */
const VALUE_BYTES = [1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8]
const TEXT = 8
const LIST = 9

async function readValue(cursor: Cursor, type: number, where: string): Promise<GgufValue> {
  if (type === TEXT) return cursor.text(where, MAX_TEXT_BYTES)
  if (type !== LIST) return readScalar(cursor, type, where)
  const of = await cursor.u32(`the type of ${where}`)
  const length = await cursor.size(`the length of ${where}`, MAX_LIST)
  if (of === LIST || VALUE_BYTES[of] === undefined) {
    throw new FormatError({ where, what: 'a list of an unknown type', got: String(of) })
  }
  cursor.check(length * (of === TEXT ? 8 : VALUE_BYTES[of]), where)
  if (length <= MAX_KEPT) {
    const items: (number | bigint | boolean | string)[] = []
    for (let i = 0; i < length; i++) {
      items.push(of === TEXT ? await cursor.text(where, MAX_TEXT_BYTES) : await readScalar(cursor, of, where))
    }
    return items
  }
  if (of !== TEXT) cursor.skip(length * VALUE_BYTES[of], where)
  else for (let i = 0; i < length; i++) cursor.skip(await cursor.size(`the length of ${where}`, MAX_TEXT_BYTES), where)
  return { length }
}

async function readScalar(cursor: Cursor, type: number, where: string): Promise<number | bigint | boolean> {
  const size = VALUE_BYTES[type]
  if (size === undefined || size === 0) {
    throw new FormatError({ where, what: 'a value of an unknown type', expected: '0 to 12', got: String(type) })
  }
  const view = await cursor.take(size, where)
  const readers: (() => number | bigint | boolean)[] = [
    () => view.getUint8(0),
    () => view.getInt8(0),
    () => view.getUint16(0, true),
    () => view.getInt16(0, true),
    () => view.getUint32(0, true),
    () => view.getInt32(0, true),
    () => view.getFloat32(0, true),
    () => view.getUint8(0) !== 0,
    () => 0,
    () => 0,
    () => view.getBigUint64(0, true),
    () => view.getBigInt64(0, true),
    () => view.getFloat64(0, true),
  ]
  return readers[type]()
}

async function readTensorInfo(cursor: Cursor, alignment: number, file: string) {
  const name = await cursor.text('the name of a tensor', MAX_NAME_BYTES)
  const where = `${file}: ${name}`
  const dimensions = await cursor.u32(`the number of dimensions of ${name}`)
  if (dimensions > MAX_DIMENSIONS) {
    throw new FormatError({
      where,
      what: 'too many dimensions',
      expected: `at most ${MAX_DIMENSIONS}`,
      got: String(dimensions),
    })
  }
  const shape: number[] = []
  for (let i = 0; i < dimensions; i++)
    shape.unshift(await cursor.size(`a dimension of ${name}`, Number.MAX_SAFE_INTEGER))
  const number = await cursor.u32(`the type of ${name}`)
  const type = GGUF_TYPES.get(number)
  if (type === undefined) throw new FormatError({ where, what: 'an unknown type of elements', got: String(number) })
  const start = await cursor.size(`the offset of ${name}`, Number.MAX_SAFE_INTEGER)
  const elements = elementCount(shape)
  if (!Number.isSafeInteger(elements) || (shape.at(-1) ?? 1) % type.blockSize !== 0) {
    throw new FormatError({ where, what: `no whole number of blocks of ${type.name}`, got: formatShape(shape) })
  }
  if (start % alignment !== 0) {
    throw new FormatError({
      where,
      what: 'an offset that is not aligned',
      expected: `a multiple of ${alignment}`,
      got: String(start),
    })
  }
  return { name, type, shape, start, byteLength: (elements / type.blockSize) * type.blockBytes }
}

function checkRanges(tensors: readonly GgufTensor[], source: ByteSource): void {
  const sorted = [...tensors].sort((a, b) => a.offset - b.offset || a.byteLength - b.byteLength)
  sorted.forEach(({ name, offset, byteLength }, i) => {
    const where = `${source.name}: ${name}`
    const before = sorted[i - 1]
    if (before !== undefined && before.offset + before.byteLength > offset) {
      throw new FormatError({ where, what: `its bytes overlap those of ${before.name}` })
    }
    if (offset + byteLength <= source.byteLength) return
    throw new FormatError({
      where,
      what: 'its bytes go past the end of the file',
      expected: `at most ${source.byteLength}`,
      got: String(offset + byteLength),
      hint: 'The file may be cut short: download it again',
    })
  })
}

/** Reads a tensor, row-major. Throws UnsupportedError if its type is not fp32, fp16, bf16 or q8_0. */
export async function readGgufTensor({ source }: GgufFile, tensor: GgufTensor): Promise<Float32Array> {
  const dtype = floatOf(tensor.type)
  if (dtype === undefined) {
    throw new UnsupportedError({
      where: `${source.name}: ${tensor.name}`,
      what: 'a type that is not read as numbers',
      expected: 'fp32, fp16, bf16 or q8_0',
      got: tensor.type.name,
    })
  }
  return decodeGguf(await source.read(tensor.offset, tensor.byteLength), dtype)
}

/**
 * Reads a header whose length is not known in advance. Every length in it is checked against the file's length before
 * anything is read or allocated.
 */
class Cursor {
  #piece: Uint8Array = new Uint8Array()
  #pieceStart = 0
  #at = 0

  constructor(private readonly source: ByteSource) {}

  get offset(): number {
    return this.#at
  }

  get left(): number {
    return this.source.byteLength - this.#at
  }

  async take(byteLength: number, what: string): Promise<DataView> {
    this.check(byteLength, what)
    const from = this.#at - this.#pieceStart
    if (from < 0 || from + byteLength > this.#piece.byteLength) {
      this.#piece = await this.source.read(this.#at, Math.min(Math.max(byteLength, PIECE_BYTES), this.left))
      this.#pieceStart = this.#at
    }
    const start = this.#piece.byteOffset + this.#at - this.#pieceStart
    this.#at += byteLength
    return new DataView(this.#piece.buffer, start, byteLength)
  }

  skip(byteLength: number, what: string): void {
    this.check(byteLength, what)
    this.#at += byteLength
  }

  check(byteLength: number, what: string): void {
    if (byteLength <= this.left) return
    throw new FormatError({
      where: this.source.name,
      what: `${what} goes past the end of the file`,
      expected: `at most ${this.left} bytes`,
      got: String(byteLength),
      hint: 'The file may be cut short: download it again',
    })
  }

  async u32(what: string): Promise<number> {
    return (await this.take(4, what)).getUint32(0, true)
  }

  async size(what: string, most: number): Promise<number> {
    const value = (await this.take(8, what)).getBigUint64(0, true)
    if (value <= BigInt(most)) return Number(value)
    throw new FormatError({
      where: this.source.name,
      what: `${what} is too large`,
      expected: `at most ${most}`,
      got: String(value),
    })
  }

  /** A text, which the file stores after its length. */
  async text(what: string, mostBytes: number): Promise<string> {
    const length = await this.size(`the length of ${what}`, mostBytes)
    const { buffer, byteOffset } = await this.take(length, what)
    return new TextDecoder().decode(new Uint8Array(buffer, byteOffset, length))
  }
}

const ALIGNMENT = 32

export type WrittenValue = string | { readonly f32: number } | { readonly u32: number }

export interface WrittenTensor {
  readonly name: string
  /** Row-major, as in PyTorch. The last dimension is a multiple of 32 for Q8_0. */
  readonly shape: readonly number[]
  readonly dtype: GgufFloat
  /** Called when the tensor's turn comes. The bytes may be put into `memory`, which has the right length. */
  bytes(memory?: Uint8Array): Uint8Array | Promise<Uint8Array>
}

/** Tensors are written in blocks of this size, because many small writes are slow. */
const BLOCK_BYTES = 1 << 21

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
  const { blockSize, blockBytes } = GGUF_TYPES.get(NUMBERS[dtype])!
  return (elementCount(shape) / blockSize) * blockBytes
}

function valueBytes(value: WrittenValue): Uint8Array[] {
  if (typeof value === 'string') return [bytesOf([8]), text(value)]
  if ('f32' in value) return [bytesOf([6]), new Uint8Array(Float32Array.of(value.f32).buffer)]
  return [bytesOf([4, value.u32])]
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
