// The zip archives that torch.save writes: stored entries only, read from the central directory (PKWARE APPNOTE 6.3.10,
// sections 4.3.7 to 4.3.16). All else is refused.

import { type ByteSource, crcTable } from '../../base/bytes.js'
import { FormatError, UnsupportedError } from '../../base/errors.js'

/** Without what its lengths add. */
interface RecordKind {
  readonly signature: number
  readonly bytes: number
}

const END: RecordKind = { signature: 0x06054b50, bytes: 22 }
const ZIP64_LOCATOR: RecordKind = { signature: 0x07064b50, bytes: 20 }
const ZIP64_END: RecordKind = { signature: 0x06064b50, bytes: 56 }
const CENTRAL: RecordKind = { signature: 0x02014b50, bytes: 46 }
const LOCAL: RecordKind = { signature: 0x04034b50, bytes: 30 }
const ZIP64_EXTRA = 1
const ENCRYPTED = 0x41
/** Stands in 32 bits for a number that the zip64 records have. */
const IN_ZIP64 = 0xffffffff

/** An adapter with 100,000 tensors has about 8 MB. */
const MAX_DIRECTORY_BYTES = 1 << 26
const READ_BYTES = 1 << 22

export interface ZipEntry {
  readonly name: string
  readonly byteLength: number
  /** 0: it was not computed, as torch.serialization.set_crc32_options(False) has it. */
  readonly crc: number
  readonly headerOffset: number
}

export interface ZipRange {
  readonly offset: number
  readonly byteLength: number
}

export class ZipArchive {
  constructor(
    private readonly source: ByteSource,
    readonly entries: ReadonlyMap<string, ZipEntry>,
    private readonly directoryStart: number,
  ) {}

  /**
   * Bytes are read once, for checksums. Throws FormatError when a local header contradicts the directory, or entries
   * overlap.
   */
  async locate(entries: readonly ZipEntry[]): Promise<ZipRange[]> {
    const ranges: ZipRange[] = []
    for (const entry of entries) ranges.push(await this.#rangeOf(entry))
    const inOrder = entries
      .map((entry, i) => ({ entry, end: ranges[i].offset + ranges[i].byteLength }))
      .sort((a, b) => a.entry.headerOffset - b.entry.headerOffset)
    inOrder.forEach(({ entry, end }, i) => {
      const next = i + 1 < inOrder.length ? inOrder[i + 1].entry.headerOffset : this.directoryStart
      if (end > next) {
        throw new FormatError({
          where: `${this.source.name}: ${entry.name}`,
          what: 'overlaps what comes after it in the archive',
          expected: `an end at ${next} at most`,
          got: `${end}`,
        })
      }
    })
    for (const [i, entry] of entries.entries()) await this.#check(entry, ranges[i])
    return ranges
  }

  async #rangeOf({ name, headerOffset, byteLength }: ZipEntry): Promise<ZipRange> {
    const where = `${this.source.name}: ${name}`
    const got = `byte ${headerOffset}`
    const nameBytes = new TextEncoder().encode(name)
    const start = headerOffset + LOCAL.bytes + nameBytes.byteLength
    if (start > this.directoryStart) throw new FormatError({ where, what: 'begins outside the archive', got })
    const header = await recordAt(this.source, headerOffset, LOCAL, nameBytes.byteLength)
    const isSame = nameBytes.every((byte, i) => header?.getUint8(LOCAL.bytes + i) === byte)
    if (header === undefined || header.getUint16(26, true) !== nameBytes.byteLength || !isSame) {
      throw new FormatError({ where, what: 'has no header of this name where the directory says', got })
    }
    return { offset: start + header.getUint16(28, true), byteLength }
  }

  async #check({ name, crc }: ZipEntry, { offset, byteLength }: ZipRange): Promise<void> {
    if (crc === 0) return
    let actual = 0
    for (let at = 0; at < byteLength; at += READ_BYTES) {
      actual = crc32(await this.source.read(offset + at, Math.min(READ_BYTES, byteLength - at)), actual)
    }
    if (actual === crc) return
    throw new FormatError({
      where: `${this.source.name}: ${name}`,
      what: 'its checksum is wrong',
      expected: crc.toString(16),
      got: actual.toString(16),
      hint: 'The file is damaged: download it again',
    })
  }
}

/** Throws UnsupportedError when an entry is compressed or encrypted. */
export async function openZip(source: ByteSource): Promise<ZipArchive> {
  const directory = await findDirectory(source)
  const { start, byteLength, count } = directory
  if (start + byteLength > directory.end || byteLength < count * CENTRAL.bytes) {
    throw new FormatError({ where: source.name, what: 'the archive’s directory does not lie where its end says' })
  }
  if (byteLength > MAX_DIRECTORY_BYTES) {
    throw new FormatError({
      where: source.name,
      what: 'too many entries in the archive',
      expected: `a directory of at most ${MAX_DIRECTORY_BYTES} bytes`,
      got: `${byteLength}`,
    })
  }
  const view = viewOf(await source.read(start, byteLength))
  const entries = new Map<string, ZipEntry>()
  let at = 0
  for (let i = 0; i < count; i++) {
    const { entry, bytes } = parseEntry(view, at, source.name)
    if (entries.has(entry.name)) {
      throw new FormatError({ where: `${source.name}: ${entry.name}`, what: 'occurs twice in the archive' })
    }
    entries.set(entry.name, entry)
    at += bytes
  }
  if (at !== byteLength) throw damaged(source.name)
  return new ZipArchive(source, entries, start)
}

async function findDirectory(source: ByteSource) {
  const where = source.name
  const endOffset = source.byteLength - END.bytes
  const end = await recordAt(source, endOffset, END)
  if (end === undefined) {
    const hint = 'The file may be cut short: download it again'
    throw new FormatError({ where, what: 'the archive has no end record', hint })
  }
  const [disk, directoryDisk, ownCount, count] = [4, 6, 8, 10].map((at) => end.getUint16(at, true))
  if (disk !== 0 || directoryDisk !== 0 || ownCount !== count) {
    throw new FormatError({ where, what: 'a part of an archive in several files' })
  }
  const place = { start: end.getUint32(16, true), byteLength: end.getUint32(12, true), count, end: endOffset }
  if (place.start !== IN_ZIP64 && place.byteLength !== IN_ZIP64 && count !== 0xffff) return place
  const locatorOffset = endOffset - ZIP64_LOCATOR.bytes
  const locator = await recordAt(source, locatorOffset, ZIP64_LOCATOR)
  const recordOffset = locator === undefined ? locatorOffset : sizeAt(locator, 8, where)
  const isBefore = recordOffset + ZIP64_END.bytes <= locatorOffset
  const record = isBefore ? await recordAt(source, recordOffset, ZIP64_END) : undefined
  if (record === undefined) throw damaged(where)
  const [total, byteLength, start] = [32, 40, 48].map((at) => sizeAt(record, at, where))
  return { start, byteLength, count: total, end: recordOffset }
}

/** Undefined where the file has no record of this kind there. */
async function recordAt(
  source: ByteSource,
  offset: number,
  { signature, bytes }: RecordKind,
  more = 0,
): Promise<DataView | undefined> {
  if (offset < 0) return undefined
  const view = viewOf(await source.read(offset, bytes + more))
  return view.getUint32(0, true) === signature ? view : undefined
}

function parseEntry(view: DataView, at: number, file: string): { entry: ZipEntry; bytes: number } {
  if (at + CENTRAL.bytes > view.byteLength || view.getUint32(at, true) !== CENTRAL.signature) throw damaged(file)
  const [nameBytes, extraBytes, commentBytes] = [28, 30, 32].map((offset) => view.getUint16(at + offset, true))
  const bytes = CENTRAL.bytes + nameBytes + extraBytes + commentBytes
  if (at + bytes > view.byteLength) throw damaged(file)
  let name: string
  try {
    const encoded = new Uint8Array(view.buffer, view.byteOffset + at + CENTRAL.bytes, nameBytes)
    name = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(encoded)
  } catch (cause) {
    throw new FormatError({ where: file, what: 'an entry’s name is not valid UTF-8', cause })
  }
  const where = `${file}: ${name}`
  const method = view.getUint16(at + 10, true)
  if (method !== 0 || (view.getUint16(at + 8, true) & ENCRYPTED) !== 0) {
    throw new UnsupportedError({
      where,
      what: `${method === 0 ? 'an encrypted' : 'a compressed'} entry, which torch.save does not write`,
      expected: 'method 0',
      got: `method ${method}`,
    })
  }
  const values = [24, 20, 42].map((offset) => view.getUint32(at + offset, true))
  readZip64(view, at + CENTRAL.bytes + nameBytes, extraBytes, values, where)
  const [byteLength, storedBytes, headerOffset] = values
  if (storedBytes !== byteLength) {
    throw new FormatError({
      where,
      what: 'a stored entry of two sizes',
      expected: `${byteLength}`,
      got: `${storedBytes}`,
    })
  }
  return { entry: { name, byteLength, headerOffset, crc: view.getUint32(at + 16, true) }, bytes }
}

/** Sizes and offset that do not fit 32 bits (APPNOTE 4.5.3). */
function readZip64(view: DataView, start: number, byteLength: number, values: number[], where: string): void {
  if (!values.includes(IN_ZIP64)) return
  for (let at = start, next = at; at + 4 <= start + byteLength; at = next) {
    next = at + 4 + view.getUint16(at + 2, true)
    if (next > start + byteLength) return
    if (view.getUint16(at, true) !== ZIP64_EXTRA) continue
    let field = at + 4
    for (const [i, value] of values.entries()) {
      if (value !== IN_ZIP64) continue
      if (field + 8 > next) throw damaged(where)
      values[i] = sizeAt(view, field, where)
      field += 8
    }
    return
  }
}

/** As far as numbers are exact. */
function sizeAt(view: DataView, offset: number, where: string): number {
  const value = view.getBigUint64(offset, true)
  if (value > BigInt(Number.MAX_SAFE_INTEGER)) throw damaged(where)
  return Number(value)
}

function viewOf(bytes: Uint8Array): DataView {
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength)
}

function damaged(where: string): FormatError {
  return new FormatError({ where, what: 'the archive’s directory is damaged', hint: 'Download the file again' })
}

/** The change that each byte makes to a checksum, and that after one, two and three more bytes. */
const TABLES = [crcTable(0xedb88320)]
for (let i = 1; i < 4; i++) TABLES.push(TABLES[i - 1].map((value) => (value >>> 8) ^ TABLES[0][value & 0xff]))

/** ISO 3309, after the bytes that `crc` is of: four bytes a step. */
export function crc32(bytes: Uint8Array, crc = 0): number {
  const [t0, t1, t2, t3] = TABLES
  let c = ~crc
  let at = 0
  for (const end = bytes.length - 3; at < end; at += 4) {
    c ^= bytes[at] | (bytes[at + 1] << 8) | (bytes[at + 2] << 16) | (bytes[at + 3] << 24)
    c = t3[c & 0xff] ^ t2[(c >>> 8) & 0xff] ^ t1[(c >>> 16) & 0xff] ^ t0[c >>> 24]
  }
  for (; at < bytes.length; at++) c = t0[(c ^ bytes[at]) & 0xff] ^ (c >>> 8)
  return ~c >>> 0
}
