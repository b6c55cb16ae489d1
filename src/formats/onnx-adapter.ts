// ONNX Runtime's .onnx_adapter files. They are FlatBuffers (onnxruntime/lora/adapter_format/adapter_schema.fbs): tables
// that point at each other. Each offset is checked against the file's length before it is followed. All tables are
// written before the data, so only one tensor's bytes need to be in memory at a time.

import type { ByteSink, ByteSource } from '../base/bytes.js'
import { type FloatDtype, sizeOf } from '../base/dtype.js'
import { counted, FormatError, UnsupportedError } from '../base/errors.js'
import { elementCount, formatShape } from '../base/tensor.js'
import type { TensorInfo } from './safetensors.js'

/** The numbers that ONNX has for the types. */
const NUMBERS: Readonly<Record<FloatDtype, number>> = { fp32: 1, fp16: 10, bf16: 16 }

const MAX_PARAMETERS = 1 << 17
const MAX_NAME_BYTES = 1000
const MAX_DIMENSIONS = 8
const PIECE_BYTES = 1 << 16

export type OnnxAdapterEntry = TensorInfo & { readonly dtype: FloatDtype }

export function isOnnxAdapter(bytes: Uint8Array): boolean {
  return bytes.byteLength >= 8 && String.fromCharCode(...bytes.subarray(4, 8)) === 'TORT'
}

/** Throws UnsupportedError for a later version and for types other than floats of 16 and 32 bits. */
export async function parseOnnxAdapter(source: ByteSource): Promise<OnnxAdapterEntry[]> {
  const reader = new Reader(source)
  if (!isOnnxAdapter(await source.read(0, Math.min(8, source.byteLength)))) {
    throw new FormatError({ where: source.name, what: 'not an .onnx_adapter file', expected: 'TORT in bytes 4 to 7' })
  }
  const root = await reader.table(await reader.root())
  const version = root[0] === 0 ? 0 : (await reader.view(root[0], 4)).getInt32(0, true)
  if (version !== 1) {
    throw new UnsupportedError({
      where: `${source.name}: format_version`,
      what: 'a version that is not read',
      expected: '1',
      got: String(version),
    })
  }
  const { start, length } = await reader.vector(await reader.offset(root[3]), 4, 'parameters', MAX_PARAMETERS)
  const entries: OnnxAdapterEntry[] = []
  for (let i = 0; i < length; i++) entries.push(await readParameter(reader, await reader.offset(start + 4 * i), source))
  const names = new Set(entries.map(({ name }) => name))
  if (names.size === entries.length) return entries
  throw new FormatError({ where: source.name, what: 'two tensors of one name' })
}

async function readParameter(reader: Reader, at: number, source: ByteSource): Promise<OnnxAdapterEntry> {
  const [nameField, dimsField, typeField, dataField] = await reader.table(at)
  const text = await reader.vector(await reader.offset(nameField), 1, 'a name', MAX_NAME_BYTES)
  const bytes = await reader.view(text.start, text.length)
  const name = new TextDecoder().decode(new Uint8Array(bytes.buffer, bytes.byteOffset, text.length))
  const where = `${source.name}: ${name}`
  const dims = await reader.vector(await reader.offset(dimsField), 8, 'dimensions', MAX_DIMENSIONS)
  const view = await reader.view(dims.start, 8 * dims.length)
  const shape = Array.from({ length: dims.length }, (_, i) => Number(view.getBigInt64(8 * i, true)))
  const number = typeField === 0 ? 0 : (await reader.view(typeField, 4)).getInt32(0, true)
  const dtype = (Object.keys(NUMBERS) as FloatDtype[]).find((name) => NUMBERS[name] === number)
  if (dtype === undefined) {
    throw new UnsupportedError({
      where,
      what: 'a type that is not read',
      expected: 'FLOAT, FLOAT16 or BFLOAT16',
      got: String(number),
    })
  }
  const data = await reader.vector(await reader.offset(dataField), 1, 'data', source.byteLength)
  const expected = elementCount(shape) * sizeOf(dtype)
  if (shape.some((size) => size < 0) || expected !== data.length) {
    throw new FormatError({
      where,
      what: 'data that do not fill the shape',
      expected: `${formatShape(shape)} of ${dtype}`,
      got: counted(data.length, 'byte'),
    })
  }
  return { name, shape, dtype, offset: data.start, byteLength: data.length }
}

/** Small reads from anywhere in the file. The piece that was read last is kept. */
class Reader {
  #piece: Uint8Array = new Uint8Array()
  #start = 0

  constructor(private readonly source: ByteSource) {}

  async view(at: number, byteLength: number): Promise<DataView> {
    const { byteLength: all, name } = this.source
    if (at <= 0 || at + byteLength > all) {
      throw new FormatError({
        where: name,
        what: 'an offset that leads out of the file',
        got: String(at),
        hint: 'The file may be cut short: download it again',
      })
    }
    if (at < this.#start || at + byteLength > this.#start + this.#piece.byteLength) {
      this.#piece = await this.source.read(at, Math.min(Math.max(byteLength, PIECE_BYTES), all - at))
      this.#start = at
    }
    return new DataView(this.#piece.buffer, this.#piece.byteOffset + at - this.#start, byteLength)
  }

  /** 0 means that the field is absent. */
  async offset(at: number): Promise<number> {
    const value = at === 0 ? 0 : (await this.view(at, 4)).getUint32(0, true)
    if (value > 0) return at + value
    throw new FormatError({ where: this.source.name, what: 'a part that is missing' })
  }

  async root(): Promise<number> {
    const { buffer, byteOffset } = await this.source.read(0, 4)
    return new DataView(buffer, byteOffset, 4).getUint32(0, true)
  }

  /** The offsets of a table's first four fields; 0 for an absent field. */
  async table(at: number): Promise<number[]> {
    const vtable = at - (await this.view(at, 4)).getInt32(0, true)
    const size = (await this.view(vtable, 4)).getUint16(0, true)
    const fields: number[] = []
    for (let i = 0; i < 4; i++) {
      const field = 6 + 2 * i <= size ? (await this.view(vtable + 4 + 2 * i, 2)).getUint16(0, true) : 0
      fields.push(field === 0 ? 0 : at + field)
    }
    return fields
  }

  async vector(
    at: number,
    elementBytes: number,
    what: string,
    most: number,
  ): Promise<{ start: number; length: number }> {
    const length = (await this.view(at, 4)).getUint32(0, true)
    if (length <= most && at + 4 + length * elementBytes <= this.source.byteLength) return { start: at + 4, length }
    throw new FormatError({ where: this.source.name, what: `${what}: more than the file has`, got: String(length) })
  }
}

/** Some offsets of the format are signed 32-bit numbers. */
const MAX_BYTES = 2 ** 31 - 1

const ROOT = 8
const VTABLE_BYTES = 12
const TABLE_BYTES = 20

/**
 * Writes the file; the caller commits the sink. `data` is called when a tensor's turn comes and gives little-endian
 * bytes. Throws UnsupportedError if the file would have 2 GiB or more.
 */
export async function writeOnnxAdapter(
  sink: ByteSink,
  tensors: readonly (Pick<OnnxAdapterEntry, 'name' | 'shape' | 'dtype'> & { data(): Uint8Array })[],
  onTensor?: (name: string) => Promise<void>,
): Promise<void> {
  // The layout: two vtables, shared by all tables of a kind, the root table, the vector of parameters, and then each
  // parameter with its texts.
  const adapterTable = ROOT + 2 * VTABLE_BYTES
  const vector = adapterTable + TABLE_BYTES
  let at = vector + 4 + 4 * tensors.length
  const placed = tensors.map(({ name, shape, dtype }) => {
    const bytes = new TextEncoder().encode(name)
    const table = aligned(at, 4)
    const text = table + TABLE_BYTES
    const dims = aligned(text + 4 + bytes.byteLength + 1 + 4, 8) - 4
    at = dims + 4 + 8 * shape.length
    return { table, text, bytes, dims, shape, dtype, data: 0, byteLength: elementCount(shape) * sizeOf(dtype) }
  })
  const headerBytes = aligned(at + 4, 8) - 4
  let end = headerBytes
  for (const tensor of placed) {
    tensor.data = aligned(end + 4, 8) - 4
    end = tensor.data + 4 + tensor.byteLength
  }
  if (end > MAX_BYTES) {
    throw new UnsupportedError({
      where: sink.name,
      what: 'too large for an .onnx_adapter',
      expected: 'less than 2 GiB',
      got: counted(end, 'byte'),
      hint: 'Write f16, or lower the rank with resize',
    })
  }
  const view = new DataView(new ArrayBuffer(headerBytes))
  const u32 = (where: number, value: number) => view.setUint32(where, value, true)
  const vtable = (where: number, size: number) => {
    for (const [i, value] of [VTABLE_BYTES, size, 4, 8, 12, 16].entries()) view.setUint16(where + 2 * i, value, true)
  }
  u32(0, adapterTable)
  for (const [i, letter] of [...'TORT'].entries()) view.setUint8(4 + i, letter.charCodeAt(0))
  vtable(ROOT, TABLE_BYTES)
  vtable(ROOT + VTABLE_BYTES, TABLE_BYTES)
  u32(adapterTable, adapterTable - ROOT)
  u32(adapterTable + 4, 1) // format_version
  u32(adapterTable + 8, 1) // adapter_version
  u32(adapterTable + 12, 1) // model_version
  u32(adapterTable + 16, vector - (adapterTable + 16))
  u32(vector, tensors.length)
  for (const [i, { table, text, bytes, dims, shape, dtype, data }] of placed.entries()) {
    u32(vector + 4 + 4 * i, table - (vector + 4 + 4 * i))
    u32(table, table - (ROOT + VTABLE_BYTES))
    u32(table + 4, text - (table + 4))
    u32(table + 8, dims - (table + 8))
    u32(table + 12, NUMBERS[dtype])
    u32(table + 16, data - (table + 16))
    u32(text, bytes.byteLength)
    new Uint8Array(view.buffer).set(bytes, text + 4)
    u32(dims, shape.length)
    for (const [j, size] of shape.entries()) view.setBigInt64(dims + 4 + 8 * j, BigInt(size), true)
  }
  await sink.write(new Uint8Array(view.buffer))
  let written = headerBytes
  for (const [i, { data, byteLength }] of placed.entries()) {
    await sink.write(new Uint8Array(data - written))
    await sink.write(new Uint8Array(Uint32Array.of(byteLength).buffer))
    await sink.write(tensors[i].data())
    await onTensor?.(tensors[i].name)
    written = data + 4 + byteLength
  }
}

function aligned(value: number, to: number): number {
  return Math.ceil(value / to) * to
}
