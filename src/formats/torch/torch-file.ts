// Files by torch.save (torch/serialization.py, `_save`: a zip archive) in the form that safetensors files have. Nothing
// in them is executed.

import { type ByteSource, concatBytes, MemorySource } from '../../base/bytes.js'
import { FormatError, UnsupportedError } from '../../base/errors.js'
import { elementCount, formatShape } from '../../base/tensor.js'
import type { SafetensorsFile, TensorInfo } from '../safetensors.js'
import { MAX_PICKLE_BYTES, PickleDict, parsePickle } from './pickle.js'
import { TorchHost, TorchTensor } from './rebuild.js'
import { openZip, type ZipArchive, type ZipEntry } from './zip.js'

/**
 * Reads a dict of tensors. If the elements of one do not follow one another, all are gathered into memory, and the file
 * is closed. Checksums are verified, for which the file is read once. Throws FormatError when the tensors are much
 * larger than the file.
 */
export async function parseTorchFile(source: ByteSource): Promise<SafetensorsFile> {
  const start = await source.read(0, Math.min(source.byteLength, 64))
  const signature = String.fromCharCode(...start.subarray(0, 2))
  if (start[0] === 0x80) {
    throw new UnsupportedError({
      where: source.name,
      what: 'a pickle and no zip archive: if it is by torch.save, then in the form from before torch 1.6',
      hint: 'Load it with torch, if you trust it, and save it again: torch.save(torch.load(path), path)',
    })
  }
  if (signature !== 'PK') {
    const isPointer = String.fromCharCode(...start).startsWith('version https://git-lfs')
    throw new FormatError({
      where: source.name,
      what: 'not a file by torch.save',
      ...(isPointer && { hint: 'It only points to one: fetch it with Git LFS' }),
    })
  }
  return indexTensors(source, await readZip(source))
}

async function readZip(source: ByteSource) {
  const archive = await openZip(source)
  const pickles = [...archive.entries.values()].filter(({ name }) => /^[^/]+\/data\.pkl$/.test(name))
  if (pickles.length !== 1) {
    throw new FormatError({
      where: source.name,
      what: 'a zip archive, but not by torch.save',
      expected: 'one entry NAME/data.pkl',
      got: `${pickles.length}`,
    })
  }
  const folder = pickles[0].name.slice(0, -'data.pkl'.length)
  await checkByteOrder(source, archive, folder)
  const host = new TorchHost()
  const pickle = await readEntry(source, archive, pickles[0], MAX_PICKLE_BYTES)
  const value = parsePickle(pickle, `${source.name}: ${pickles[0].name}`, host)
  const storages = [...host.storages.values()]
  const entries = storages.map(({ key, byteLength }) => {
    const entry = archive.entries.get(`${folder}data/${key}`)
    if (entry?.byteLength === byteLength) return entry
    throw new FormatError({
      where: `${source.name}: ${folder}data/${key.slice(0, 100)}`,
      what: entry === undefined ? 'a storage that is not in the archive' : 'not as long as the pickle says',
      expected: `${byteLength} bytes`,
      got: `${entry?.byteLength ?? 'nothing'}`,
    })
  })
  const ranges = await archive.locate(entries)
  return { value, offsets: new Map(storages.map(({ key }, i) => [key, ranges[i].offset])) }
}

/** Files before torch 2.1 do not name it, and are little-endian. */
async function checkByteOrder(source: ByteSource, archive: ZipArchive, folder: string): Promise<void> {
  const entry = archive.entries.get(`${folder}byteorder`)
  if (entry === undefined) return
  const text = new TextDecoder().decode(await readEntry(source, archive, entry, 16))
  if (text === 'little') return
  const details = { where: source.name, what: 'not in little-endian order', expected: 'little', got: text }
  throw text === 'big' ? new UnsupportedError(details) : new FormatError(details)
}

async function readEntry(
  source: ByteSource,
  archive: ZipArchive,
  entry: ZipEntry,
  maxBytes: number,
): Promise<Uint8Array> {
  if (entry.byteLength > maxBytes) {
    throw new FormatError({
      where: `${source.name}: ${entry.name}`,
      what: 'too large',
      expected: `at most ${maxBytes} bytes`,
      got: `${entry.byteLength}`,
    })
  }
  const [{ offset, byteLength }] = await archive.locate([entry])
  return source.read(offset, byteLength)
}

async function indexTensors(
  source: ByteSource,
  { value, offsets }: Awaited<ReturnType<typeof readZip>>,
): Promise<SafetensorsFile> {
  const where = source.name
  if (!(value instanceof PickleDict)) {
    throw new FormatError({
      where,
      what: 'no dict of tensors was saved',
      got: typeof value === 'object' ? (value?.kind ?? 'None') : typeof value,
    })
  }
  let cost = 0
  const views = Array.from(value.entries, ([name, tensor]): View => {
    if (typeof name !== 'string' || !(tensor instanceof TorchTensor)) {
      throw new FormatError({ where: `${where}: ${String(name).slice(0, 200)}`, what: 'not a named tensor' })
    }
    const { shape, strides, type, isContiguous } = tensor
    const byteLength = elementCount(shape) * type.bytes
    const span = byteLength && shape.reduce((sum, dim, i) => sum + (dim - 1) * strides[i], 1) * type.bytes
    cost += byteLength + (isContiguous ? 0 : span)
    if (cost > source.byteLength * TIMES_FILE + SPARE_BYTES) {
      throw new FormatError({
        where: `${where}: ${name}`,
        what: 'views that are much larger than the file',
        got: `shape ${formatShape(shape)}, strides ${formatShape(strides)}`,
      })
    }
    const start = offsets.get(tensor.storage.key)! + tensor.offset * type.bytes
    return { name, tensor, start, span, byteLength }
  })
  const isInPlace = views.every(({ tensor, byteLength }) => byteLength === 0 || tensor.isContiguous)
  const parts = isInPlace ? undefined : await gathered(source, views)
  let end = 0
  const tensors = new Map<string, TensorInfo>()
  for (const { name, tensor, start, byteLength } of views) {
    const { shape, type } = tensor
    tensors.set(name, { name, dtype: type.dtype, shape, offset: isInPlace ? start : end, byteLength })
    end += byteLength
  }
  if (parts === undefined) return { source, tensors, metadata: {} }
  await source.close()
  return { source: new MemorySource(concatBytes(parts), where), tensors, metadata: {} }
}

interface View {
  readonly name: string
  readonly tensor: TorchTensor
  /** Its first byte in the file. */
  readonly start: number
  /** Bytes from its first element to its last one, and of its elements. */
  readonly span: number
  readonly byteLength: number
}

/**
 * Beside some times the file's own length: a stride of 0 makes much out of nothing, and so do many views of one
 * storage.
 */
const SPARE_BYTES = 1 << 26
const TIMES_FILE = 8

/** The bytes of all tensors, row-major. */
async function gathered(source: ByteSource, views: readonly View[]): Promise<Uint8Array[]> {
  const parts: Uint8Array[] = []
  for (const { tensor, start, span, byteLength } of views) {
    const copy = new Uint8Array(byteLength)
    copyStrided(await source.read(start, span), copy, tensor)
    parts.push(copy)
  }
  return parts
}

function copyStrided(from: Uint8Array, to: Uint8Array, { shape, strides, type: { bytes } }: TorchTensor): void {
  const index = shape.map(() => 0)
  let at = 0
  for (let written = 0; written < to.byteLength; written += bytes) {
    for (let i = 0; i < bytes; i++) to[written + i] = from[at + i]
    for (let dim = shape.length - 1; dim >= 0; dim--) {
      at += strides[dim] * bytes
      if (++index[dim] < shape[dim]) break
      at -= strides[dim] * shape[dim] * bytes
      index[dim] = 0
    }
  }
}
