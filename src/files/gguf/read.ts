// Reads the headers of GGUF files (ggml's docs/gguf.md, versions 2 and 3): metadata, and where each tensor lies.

import type { ByteSource } from '../../core/base/bytes.js'
import type { TensorDtype } from '../../core/base/dtype.js'
import { counted, FormatError, UnsupportedError } from '../../core/base/errors.js'
import { elementCount, roundUp } from '../../core/base/tensor.js'
import { blockValues, type StoredDtype, storedSize } from './blocks.js'

/** The numbers of enum ggml_type in ggml.h for the types that can be read. */
export const GGML_TYPES: ReadonlyMap<number, StoredDtype> = new Map<number, StoredDtype>([
  [0, 'fp32'],
  [1, 'fp16'],
  [2, 'q4_0'],
  [3, 'q4_1'],
  [6, 'q5_0'],
  [7, 'q5_1'],
  [8, 'q8_0'],
  [12, 'q4_k'],
  [13, 'q5_k'],
  [14, 'q6_k'],
  [20, 'iq4_nl'],
  [28, 'fp64'],
  [30, 'bf16'],
])

export function ggmlType(dtype: TensorDtype): number | undefined {
  return [...GGML_TYPES].find(([, known]) => known === dtype)?.[0]
}

export const DEFAULT_ALIGNMENT = 32
/** A header holds the whole tokenizer: those of models have up to 20 MB. */
const MAX_HEADER_BYTES = 500_000_000
const MAX_DIMENSIONS = 4

export interface GgufTensor {
  readonly name: string
  /** Row-major, as in PyTorch. */
  readonly shape: readonly number[]
  /** The number of its type in ggml.h. */
  readonly type: number
  /** Its place in the file, in bytes. */
  readonly offset: number
  readonly byteLength: number
}

export interface GgufFile {
  readonly source: ByteSource
  /** Strings, numbers and truth values; lists are undefined, and are kept as bytes. */
  readonly metadata: ReadonlyMap<
    string,
    { readonly value: string | number | boolean | undefined; readonly bytes: Uint8Array }
  >
  /** In the order of their bytes. */
  readonly tensors: readonly GgufTensor[]
  readonly alignment: number
}

/** Throws FormatError if the file is no GGUF file, or ends before its tensors do. */
export async function readGguf(source: ByteSource): Promise<GgufFile> {
  for (let size = Math.min(source.byteLength, 1 << 20); ; size = Math.min(source.byteLength, size * 4)) {
    const header = new Header(await source.read(0, size), source.name)
    try {
      return parse(header, source)
    } catch (error) {
      // The header may be longer than what was read of it.
      if (!(error instanceof Ended)) throw error
      if (size === source.byteLength || size >= MAX_HEADER_BYTES) {
        throw new FormatError({
          where: source.name,
          what: 'the file ends within its header',
          got: counted(size, 'byte'),
        })
      }
    }
  }
}

function parse(header: Header, source: ByteSource): GgufFile {
  const where = source.name
  if (header.u32() !== 0x46554747)
    throw new FormatError({ where, what: 'not a GGUF file: it does not begin with GGUF' })
  const version = header.u32()
  if (version !== 2 && version !== 3) {
    const what = 'a version of GGUF that is not read here, or a big-endian file'
    throw new UnsupportedError({ where, what, expected: '2 or 3', got: String(version) })
  }
  const [tensorCount, valueCount] = [header.size(), header.size()]
  const metadata = new Map<string, { value: string | number | boolean | undefined; bytes: Uint8Array }>()
  for (let i = 0; i < valueCount; i++) {
    const key = header.string()
    const start = header.at
    const value = header.value(header.u32())
    metadata.set(key, { value, bytes: header.bytes.slice(start, header.at) })
  }
  const alignment = metadata.get('general.alignment')?.value ?? DEFAULT_ALIGNMENT
  if (typeof alignment !== 'number' || alignment < 8 || alignment % 8 !== 0) {
    throw new FormatError({ where: `${where}: general.alignment`, what: 'not a multiple of 8', got: String(alignment) })
  }
  const found: { name: string; shape: number[]; type: number; start: number }[] = []
  // A damaged file can have a count for which there is no memory: the header ends long before.
  while (found.length < tensorCount) {
    const name = header.string()
    const dimensions = header.u32()
    if (dimensions > MAX_DIMENSIONS) {
      throw new FormatError({ where: `${where}: ${name}`, what: 'too many dimensions', got: String(dimensions) })
    }
    const shape = Array.from({ length: dimensions }, () => header.size()).reverse()
    found.push({ name, shape, type: header.u32(), start: header.size() })
  }
  const data = roundUp(header.at, alignment)
  const ordered = found.sort((a, b) => a.start - b.start)
  const tensors = ordered.map(({ start, ...tensor }, i): GgufTensor => {
    const offset = data + start
    const end = i + 1 < ordered.length ? data + ordered[i + 1].start : source.byteLength
    // What a type that is not read here takes shows in where the next tensor begins.
    const byteLength = byteLengthOf(tensor, where) ?? end - offset
    if (offset % alignment !== 0 || offset + byteLength > end) {
      throw new FormatError({
        where: `${where}: ${tensor.name}`,
        what: i + 1 < ordered.length ? 'its bytes overlap the next tensor' : 'the file ends within its values',
        expected: `${byteLength} bytes from ${offset} on`,
        got: `${Math.max(0, end - offset)}`,
        hint: 'The file is damaged or not whole: download it again',
      })
    }
    return { ...tensor, offset, byteLength }
  })
  return { source, metadata, tensors, alignment }
}

function byteLengthOf({ name, shape, type }: Pick<GgufTensor, 'name' | 'shape' | 'type'>, where: string) {
  const dtype = GGML_TYPES.get(type)
  if (dtype === undefined) return undefined
  const width = shape.at(-1) ?? 1
  if (width % blockValues(dtype) === 0) return elementCount(shape) * storedSize(dtype)
  const what = `rows that are no whole blocks of ${dtype}`
  throw new FormatError({ where: `${where}: ${name}`, what, got: `${width} values` })
}

class Ended extends Error {}

const SCALARS: Readonly<
  Record<number, readonly [bytes: number, read: (view: DataView, at: number) => number | boolean]>
> = {
  0: [1, (view, at) => view.getUint8(at)],
  1: [1, (view, at) => view.getInt8(at)],
  2: [2, (view, at) => view.getUint16(at, true)],
  3: [2, (view, at) => view.getInt16(at, true)],
  4: [4, (view, at) => view.getUint32(at, true)],
  5: [4, (view, at) => view.getInt32(at, true)],
  6: [4, (view, at) => view.getFloat32(at, true)],
  7: [1, (view, at) => view.getUint8(at) !== 0],
  10: [8, (view, at) => Number(view.getBigUint64(at, true))],
  11: [8, (view, at) => Number(view.getBigInt64(at, true))],
  12: [8, (view, at) => view.getFloat64(at, true)],
}

const STRING = 8
const LIST = 9

/** A place in the beginning of a file. Reading over its end throws Ended. */
class Header {
  at = 0
  readonly #view: DataView

  constructor(
    readonly bytes: Uint8Array,
    private readonly name: string,
  ) {
    this.#view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength)
  }

  u32(): number {
    return this.#view.getUint32(this.#skip(4), true)
  }

  /** A length. Throws FormatError if no file can have it. */
  size(): number {
    const value = Number(this.#view.getBigUint64(this.#skip(8), true))
    if (Number.isSafeInteger(value) && value < 2 ** 45) return value
    throw new FormatError({ where: this.name, what: 'the header has a length that no file has', got: String(value) })
  }

  string(): string {
    const length = this.size()
    const start = this.#skip(length)
    return new TextDecoder().decode(this.bytes.subarray(start, start + length))
  }

  value(type: number): string | number | boolean | undefined {
    if (type === STRING) return this.string()
    if (type === LIST) {
      const [of, length] = [this.u32(), this.size()]
      if (Object.hasOwn(SCALARS, of)) this.#skip(SCALARS[of][0] * length)
      else if (of === STRING) for (let i = 0; i < length; i++) this.#skip(this.size())
      else throw new FormatError({ where: this.name, what: 'a list of an unknown type', got: String(of) })
      return undefined
    }
    const scalar = Object.hasOwn(SCALARS, type) ? SCALARS[type] : undefined
    if (scalar === undefined) {
      throw new FormatError({ where: this.name, what: 'metadata of an unknown type', got: String(type) })
    }
    return scalar[1](this.#view, this.#skip(scalar[0]))
  }

  #skip(bytes: number): number {
    const start = this.at
    if (start + bytes > this.bytes.byteLength) throw new Ended()
    this.at += bytes
    return start
  }
}
