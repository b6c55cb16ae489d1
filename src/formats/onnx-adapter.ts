// Writes ONNX Runtime's .onnx_adapter files. They are FlatBuffers (onnxruntime/lora/adapter_format/adapter_schema.fbs):
// tables that point at each other. All tables come before the data, so only one tensor's bytes are in memory at a time.

import type { ByteSink } from '../base/bytes.js'
import { type FloatDtype, sizeOf } from '../base/dtype.js'
import { counted, UnsupportedError } from '../base/errors.js'
import { elementCount, roundUp } from '../base/tensor.js'

/** The numbers that ONNX has for the types. */
const NUMBERS: Readonly<Record<FloatDtype, number>> = { fp32: 1, fp16: 10, bf16: 16 }

export interface OnnxAdapterTensor {
  readonly name: string
  readonly shape: readonly number[]
  readonly dtype: FloatDtype
  /** Called when the tensor's turn comes. Gives little-endian bytes. */
  data(): Uint8Array
}

/** Some offsets of the format are signed 32-bit numbers. */
const MAX_BYTES = 2 ** 31 - 1

const ROOT = 8
const VTABLE_BYTES = 12
const TABLE_BYTES = 20

/** Writes the file; the caller commits the sink. Throws UnsupportedError if it would have 2 GiB or more. */
export async function writeOnnxAdapter(
  sink: ByteSink,
  tensors: readonly OnnxAdapterTensor[],
  onTensor?: (name: string) => Promise<void>,
): Promise<void> {
  // The layout: two vtables (all tables of a kind share one), then the root table, then the vector of parameters, and
  // then each parameter with its texts.
  const adapterTable = ROOT + 2 * VTABLE_BYTES
  const vector = adapterTable + TABLE_BYTES
  let at = vector + 4 + 4 * tensors.length
  const placed = tensors.map(({ name, shape, dtype }) => {
    const bytes = new TextEncoder().encode(name)
    const table = roundUp(at, 4)
    const text = table + TABLE_BYTES
    const dims = roundUp(text + 4 + bytes.byteLength + 1 + 4, 8) - 4
    at = dims + 4 + 8 * shape.length
    return { table, text, bytes, dims, shape, dtype, data: 0, byteLength: elementCount(shape) * sizeOf(dtype) }
  })
  const headerBytes = roundUp(at + 4, 8) - 4
  let end = headerBytes
  for (const tensor of placed) {
    tensor.data = roundUp(end + 4, 8) - 4
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
