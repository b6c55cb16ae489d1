// safetensors files: the header's length, a JSON header, and the tensors' bytes without gaps. We refuse what the
// reference implementation refuses: https://github.com/huggingface/safetensors#format

// The files of src/files/, in reading order:
//   io/source.ts                   what a string means: a path, an id on the Hub, or a URL
//   io/                            files in Node, in browsers, on the Hub with its cache, and on web servers
//   safetensors.ts, checkpoint.ts  one file of tensors, and several with an index
//   gguf/, json.ts                 files for llama.cpp; JSON from strangers
//   data/                          rows for training, from JSONL, CSV, Parquet, folders and memory

import { type ByteSink, type ByteSource, type Directory, sniff, writeThrough } from '../core/base/bytes.js'
import { DTYPE_BITS, decodeWeights, isBlockDtype, requireWeightDtype, type TensorDtype } from '../core/base/dtype.js'
import { counted, didYouMean, FormatError, ShapeError } from '../core/base/errors.js'
import { elementCount, formatShape, type Tensor } from '../core/base/tensor.js'
import { type JsonObject, type JsonValue, parseJson } from './json.js'

/** The limit of the reference implementation. A larger header is an attack on the reader's memory. */
const MAX_HEADER_BYTES = 100_000_000
const LENGTH_BYTES = 8
const METADATA_KEY = '__metadata__'

const DTYPES: readonly TensorDtype[] = (Object.keys(DTYPE_BITS) as TensorDtype[]).filter(
  (dtype) => !isBlockDtype(dtype),
)

const SPELLINGS: Partial<Record<TensorDtype, string>> = { fp16: 'F16', bf16: 'BF16', fp32: 'F32', fp64: 'F64' }

const BY_SPELLING = new Map(DTYPES.map((dtype) => [spelled(dtype), dtype]))

function spelled(dtype: TensorDtype): string {
  return SPELLINGS[dtype] ?? dtype
}

export interface TensorSpec {
  readonly name: string
  readonly dtype: TensorDtype
  readonly shape: readonly number[]
}

export interface TensorInfo extends TensorSpec {
  /** The tensor's offset in the file, in bytes. */
  readonly offset: number
  readonly byteLength: number
}

export interface SafetensorsFile {
  /** The file. The caller closes it. */
  readonly source: ByteSource
  readonly tensors: ReadonlyMap<string, TensorInfo>
  readonly metadata: Readonly<Record<string, string>>
}

/** Reads the header. Throws FormatError if it is wrong, or if the tensors overlap or do not fill the file exactly. */
export async function parseSafetensorsHeader(source: ByteSource): Promise<SafetensorsFile> {
  const where = source.name
  const header = await readHeader(source)
  const dataStart = LENGTH_BYTES + header.byteLength
  if (header[0] !== '{'.charCodeAt(0)) throw new FormatError({ where, what: 'the header does not begin with {' })
  const tensors = new Map<string, TensorInfo>()
  let metadata: Record<string, string> = {}
  for (const [name, value] of parseJson(header, where, { wholeNumbers: true }) as JsonObject) {
    if (name === METADATA_KEY) metadata = parseMetadata(value, where)
    else tensors.set(name, parseTensor(name, value, dataStart, where))
  }
  checkCoverage(tensors, dataStart, source)
  return { source, tensors, metadata }
}

async function readHeader(source: ByteSource): Promise<Uint8Array> {
  const where = source.name
  if (source.byteLength < LENGTH_BYTES) {
    throw new FormatError({
      where,
      what: 'not a safetensors file: too short',
      expected: `at least ${LENGTH_BYTES} bytes`,
      got: `${source.byteLength}`,
    })
  }
  const lengthBytes = await source.read(0, LENGTH_BYTES)
  const headerBytes = new DataView(lengthBytes.buffer, lengthBytes.byteOffset, LENGTH_BYTES).getBigUint64(0, true)
  if (headerBytes > MAX_HEADER_BYTES) {
    const recognized = await sniff(source)
    if (recognized !== undefined)
      throw new FormatError({ where, what: `not a safetensors file but ${recognized.name}`, hint: recognized.hint })
    throw new FormatError({
      where,
      what: 'header too large, or not a safetensors file',
      expected: `at most ${MAX_HEADER_BYTES} bytes`,
      got: `${headerBytes}`,
    })
  }
  if (LENGTH_BYTES + Number(headerBytes) > source.byteLength) {
    throw new FormatError({
      where,
      what: 'the header goes past the end of the file',
      expected: `at most ${source.byteLength - LENGTH_BYTES} bytes`,
      got: `${headerBytes}`,
      hint: 'The file may be cut short: download it again',
    })
  }
  return source.read(LENGTH_BYTES, Number(headerBytes))
}

function parseMetadata(value: JsonValue, where: string): Record<string, string> {
  if (!(value instanceof Map)) throw new FormatError({ where, what: `${METADATA_KEY} is not a JSON object` })
  for (const [key, item] of value) {
    if (typeof item !== 'string') {
      throw new FormatError({ where, what: `${METADATA_KEY} value of ${JSON.stringify(key)} is not a string` })
    }
  }
  return Object.fromEntries(value as Map<string, string>)
}

const ENTRY_KEYS: readonly string[] = ['dtype', 'shape', 'data_offsets']

function parseTensor(name: string, value: JsonValue, dataStart: number, file: string): TensorInfo {
  const where = tensorWhere(file, name)
  if (!(value instanceof Map)) throw new FormatError({ where, what: 'its header entry is not a JSON object' })
  if (value.size !== ENTRY_KEYS.length || !ENTRY_KEYS.every((key) => value.has(key))) {
    const unknown = [...value.keys()].find((key) => !ENTRY_KEYS.includes(key))
    if (unknown !== undefined) throw new FormatError({ where, what: `unknown header key ${JSON.stringify(unknown)}` })
  }
  const written = value.get('dtype')
  const dtype = BY_SPELLING.get(written as string)
  if (dtype === undefined) {
    const expected = [...BY_SPELLING.keys()].join(', ')
    throw new FormatError({ where, what: 'unknown dtype', expected, got: describe(written) })
  }
  const shape = value.get('shape')
  if (!isSizes(shape)) {
    throw new FormatError({
      where,
      what: 'wrong shape',
      expected: 'an array of safe non-negative integers',
      got: describe(shape),
    })
  }
  const offsets = value.get('data_offsets')
  if (!isSizes(offsets) || offsets.length !== 2 || offsets[0] > offsets[1]) {
    throw new FormatError({
      where,
      what: 'wrong data_offsets',
      expected: '[begin, end] with 0 ≤ begin ≤ end',
      got: describe(offsets),
    })
  }
  const byteLength = offsets[1] - offsets[0]
  const expected = tensorByteLength(dtype, shape)
  if (byteLength !== expected) {
    throw new FormatError({
      where,
      what: `data_offsets do not fit ${written} ${formatShape(shape)}`,
      expected: expected === undefined ? 'a size that is a whole number of bytes below 2⁵³' : counted(expected, 'byte'),
      got: `${byteLength}`,
    })
  }
  return { name, dtype, shape, offset: dataStart + offsets[0], byteLength }
}

/** Tensors must follow one another from the end of the header to the end of the file. */
function checkCoverage(tensors: ReadonlyMap<string, TensorInfo>, dataStart: number, source: ByteSource): void {
  const inOrder = [...tensors.values()].sort((a, b) => a.offset - b.offset || a.byteLength - b.byteLength)
  let end = dataStart
  for (const tensor of inOrder) {
    if (tensor.offset !== end) {
      throw new FormatError({
        where: tensorWhere(source.name, tensor.name),
        what: tensor.offset < end ? 'overlaps the tensor before it' : 'a hole before its bytes',
        expected: `begin ${end - dataStart}`,
        got: `${tensor.offset - dataStart}`,
      })
    }
    end += tensor.byteLength
    if (end > source.byteLength) {
      throw new FormatError({
        where: tensorWhere(source.name, tensor.name),
        what: 'its bytes go past the end of the file',
        expected: `end at most ${source.byteLength - dataStart}`,
        got: `${end - dataStart}`,
        hint: 'The file may be cut short: download it again',
      })
    }
  }
  if (end !== source.byteLength) {
    throw new FormatError({
      where: source.name,
      what: 'bytes after the last tensor',
      expected: counted(end, 'byte'),
      got: `${source.byteLength}`,
    })
  }
}

/** Reads a tensor of floats as f32. Throws FormatError if the file lacks it, and UnsupportedError for other types. */
export async function readTensorF32(file: SafetensorsFile, name: string): Promise<Tensor> {
  const info = file.tensors.get(name)
  if (info === undefined) {
    throw new FormatError({
      where: file.source.name,
      what: `no tensor named ${name}`,
      hint: didYouMean(name, file.tensors.keys(), 3),
    })
  }
  const dtype = requireWeightDtype(info.dtype, tensorWhere(file.source.name, name), 'its dtype cannot be read as fp32')
  const values = decodeWeights(await file.source.read(info.offset, info.byteLength), dtype)
  return { data: values instanceof Float32Array ? values : Float32Array.from(values), shape: info.shape }
}

/**
 * Plans the bytes of the header and the order of the tensors after it, as the reference implementation does: the widest
 * dtypes first, the names of one dtype in code-point order, and spaces until the header fills a multiple of 8 bytes.
 */
export function planSafetensors(
  tensors: readonly TensorSpec[],
  metadata: Readonly<Record<string, string>> = {},
): { header: Uint8Array; tensors: readonly TensorInfo[] } {
  const sorted = [...tensors].sort(
    (a, b) => DTYPES.indexOf(b.dtype) - DTYPES.indexOf(a.dtype) || compareCodePoints(a.name, b.name),
  )
  const parts: string[] = []
  if (Object.keys(metadata).length > 0) parts.push(`"${METADATA_KEY}":${JSON.stringify(metadata)}`)
  const placed: (TensorSpec & { begin: number; byteLength: number })[] = []
  let begin = 0
  const seen = new Set<string>()
  for (const { name, dtype, shape } of sorted) {
    if (seen.has(name) || name === METADATA_KEY || /\p{Surrogate}/u.test(name)) {
      throw new FormatError({
        where: 'safetensors',
        what: seen.has(name) ? `two tensors named ${name}` : `no tensor can be named ${JSON.stringify(name)}`,
      })
    }
    seen.add(name)
    const byteLength = isSizes(shape) ? tensorByteLength(dtype, shape) : undefined
    if (byteLength === undefined) {
      throw new ShapeError({ where: name, what: `no size in whole bytes for ${dtype} ${formatShape(shape)}` })
    }
    placed.push({ name, dtype, shape, begin, byteLength })
    const entry = { dtype: spelled(dtype), shape, data_offsets: [begin, begin + byteLength] }
    parts.push(`${JSON.stringify(name)}:${JSON.stringify(entry)}`)
    begin += byteLength
  }
  const header = encodeHeader(`{${parts.join(',')}}`)
  return { header, tensors: placed.map(({ begin, ...tensor }) => ({ ...tensor, offset: header.byteLength + begin })) }
}

function encodeHeader(text: string): Uint8Array {
  const json = new TextEncoder().encode(text)
  const headerBytes = Math.ceil(json.byteLength / 8) * 8
  const header = new Uint8Array(LENGTH_BYTES + headerBytes).fill(' '.charCodeAt(0), LENGTH_BYTES)
  new DataView(header.buffer).setBigUint64(0, BigInt(headerBytes), true)
  header.set(json, LENGTH_BYTES)
  return header
}

/** A tensor with its bytes, little-endian and row-major. */
export interface TensorBytes extends TensorSpec {
  readonly data: Uint8Array
}

/** Writes a file; the caller commits the sink. Nothing is written if some data do not fill their shape. */
export async function writeSafetensors(
  sink: ByteSink,
  tensors: readonly TensorBytes[],
  metadata: Readonly<Record<string, string>> = {},
): Promise<void> {
  const plan = planSafetensors(tensors, metadata)
  const data = new Map(tensors.map((tensor) => [tensor.name, tensor.data]))
  for (const { name, dtype, shape, byteLength } of plan.tensors) {
    if (data.get(name)!.byteLength !== byteLength) {
      throw new ShapeError({
        where: name,
        what: `data do not fill ${dtype} ${formatShape(shape)}`,
        expected: counted(byteLength, 'byte'),
        got: `${data.get(name)!.byteLength}`,
      })
    }
  }
  await sink.write(plan.header)
  for (const { name } of plan.tensors) await sink.write(data.get(name)!)
}

/** Writes a safetensors file, which appears complete or not at all. */
export async function saveSafetensors(
  directory: Directory,
  path: string,
  tensors: readonly TensorBytes[],
  metadata: Readonly<Record<string, string>> = {},
): Promise<void> {
  await writeThrough(directory, path, (sink) => writeSafetensors(sink, tensors, metadata))
}

/** Returns undefined if the size is not a whole number of bytes, or too large for exact arithmetic. */
function tensorByteLength(dtype: TensorDtype, shape: readonly number[]): number | undefined {
  if (shape.includes(0)) return 0
  const bits = DTYPE_BITS[dtype] * elementCount(shape)
  return Number.isSafeInteger(bits) && bits % 8 === 0 ? bits / 8 : undefined
}

function isSizes(value: unknown): value is number[] {
  return Array.isArray(value) && value.every((item) => Number.isSafeInteger(item) && item >= 0)
}

function describe(value: JsonValue | undefined): string {
  if (value === undefined) return 'nothing'
  return value instanceof Map ? 'an object' : JSON.stringify(value).slice(0, 100)
}

function tensorWhere(file: string, name: string): string {
  return `${file}: ${name}`
}

/** Compares strings as Rust and Python do. JavaScript compares UTF-16 units, which differs above U+FFFF. */
function compareCodePoints(a: string, b: string): number {
  for (let i = 0; i < Math.min(a.length, b.length); ) {
    const x = a.codePointAt(i)!
    const y = b.codePointAt(i)!
    if (x !== y) return x - y
    i += x > 0xffff ? 2 : 1
  }
  return a.length - b.length
}
