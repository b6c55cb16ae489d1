// The zip archives that torch.save writes: stored entries only, so that an entry's content is a range of the file. Read
// from the central directory (PKWARE APPNOTE 6.3.10, sections 4.3.7 to 4.3.16); whatever torch.save does not write is
// refused.

import type { ByteSource } from '../../base/bytes.js'
import { FormatError, UnsupportedError } from '../../base/errors.js'

const END = { signature: 0x06054b50, bytes: 22 }
const ZIP64_LOCATOR = { signature: 0x07064b50, bytes: 20 }
const ZIP64_END = { signature: 0x06064b50, bytes: 56 }
const CENTRAL = { signature: 0x02014b50, bytes: 46 }
const LOCAL = { signature: 0x04034b50, bytes: 30 }
const ZIP64_EXTRA = 1
const ENCRYPTED = 0x41

/** An adapter with 100,000 tensors has about 8 MB. */
const MAX_DIRECTORY_BYTES = 1 << 26
const READ_BYTES = 1 << 22

/** The description of an entry in the directory. */
export interface ZipEntry {
  readonly name: string
  readonly byteLength: number
  /** 0: it was not computed, as torch.serialization.set_crc32_options(False) has it. */
  readonly crc: number
  readonly headerOffset: number
}

/** The place of an entry's content. */
export interface ZipRange {
  readonly offset: number
  readonly byteLength: number
}

/** An archive's entries, and where the central directory begins. */
export class ZipArchive {
  readonly entries: ReadonlyMap<string, ZipEntry>
  readonly #source: ByteSource
  readonly #directoryStart: number

  constructor(source: ByteSource, entries: ReadonlyMap<string, ZipEntry>, directoryStart: number) {
    this.#source = source
    this.entries = entries
    this.#directoryStart = directoryStart
  }

  /**
   * Finds the contents of entries, in the given order. Their bytes are read once, for their checksums.
   *
   * @throws FormatError when a local header contradicts the directory, entries overlap, or a checksum is wrong
   */
  async locate(entries: readonly ZipEntry[]): Promise<ZipRange[]> {
    const ranges: ZipRange[] = []
    for (const entry of entries) ranges.push(await this.#rangeOf(entry))
    const inOrder = entries
      .map((entry, i) => ({ entry, end: ranges[i].offset + ranges[i].byteLength }))
      .sort((a, b) => a.entry.headerOffset - b.entry.headerOffset)
    inOrder.forEach(({ entry, end }, i) => {
      const next = i + 1 < inOrder.length ? inOrder[i + 1].entry.headerOffset : this.#directoryStart
      if (end > next) {
        throw new FormatError({
          where: `${this.#source.name}: ${entry.name}`,
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
    const where = `${this.#source.name}: ${name}`
    const nameBytes = new TextEncoder().encode(name)
    const headerBytes = LOCAL.bytes + nameBytes.byteLength
    if (headerOffset + headerBytes > this.#directoryStart) {
      throw new FormatError({ where, what: 'begins outside the archive', got: `byte ${headerOffset}` })
    }
    const header = viewOf(await this.#source.read(headerOffset, headerBytes))
    const isSame = nameBytes.every((byte, i) => header.getUint8(LOCAL.bytes + i) === byte)
    if (
      header.getUint32(0, true) !== LOCAL.signature ||
      header.getUint16(26, true) !== nameBytes.byteLength ||
      !isSame
    ) {
      throw new FormatError({
        where,
        what: 'has no header of this name where the directory says',
        got: `byte ${headerOffset}`,
      })
    }
    return { offset: headerOffset + headerBytes + header.getUint16(28, true), byteLength }
  }

  async #check({ name, crc }: ZipEntry, { offset, byteLength }: ZipRange): Promise<void> {
    if (crc === 0) return
    let actual = 0
    for (let at = 0; at < byteLength; at += READ_BYTES) {
      actual = crc32(await this.#source.read(offset + at, Math.min(READ_BYTES, byteLength - at)), actual)
    }
    if (actual === crc) return
    throw new FormatError({
      where: `${this.#source.name}: ${name}`,
      what: 'its checksum is wrong',
      expected: crc.toString(16),
      got: actual.toString(16),
      hint: 'The file is damaged: download it again',
    })
  }
}

/**
 * Reads an archive's directory.
 *
 * @throws FormatError that names the file when it is no zip archive, or its directory is damaged or has a name twice;
 *   UnsupportedError when an entry is compressed or encrypted
 */
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

interface DirectoryPlace {
  readonly start: number
  readonly byteLength: number
  readonly count: number
  /** The offset at which the end records begin. */
  readonly end: number
}

async function findDirectory(source: ByteSource): Promise<DirectoryPlace> {
  const where = source.name
  const endOffset = source.byteLength - END.bytes
  const end = endOffset < 0 ? undefined : viewOf(await source.read(endOffset, END.bytes))
  if (end === undefined || end.getUint32(0, true) !== END.signature) {
    throw new FormatError({
      where,
      what: 'the archive has no end record',
      hint: 'The file may be cut short: download it again',
    })
  }
  if (
    end.getUint16(4, true) !== 0 ||
    end.getUint16(6, true) !== 0 ||
    end.getUint16(8, true) !== end.getUint16(10, true)
  ) {
    throw new FormatError({ where, what: 'a part of an archive in several files' })
  }
  const place = {
    start: end.getUint32(16, true),
    byteLength: end.getUint32(12, true),
    count: end.getUint16(10, true),
    end: endOffset,
  }
  if (place.start !== 0xffffffff && place.byteLength !== 0xffffffff && place.count !== 0xffff) return place

  const locatorOffset = endOffset - ZIP64_LOCATOR.bytes
  const locator = locatorOffset < 0 ? undefined : viewOf(await source.read(locatorOffset, ZIP64_LOCATOR.bytes))
  if (locator?.getUint32(0, true) !== ZIP64_LOCATOR.signature) throw damaged(where)
  const recordOffset = sizeAt(locator, 8, where)
  if (recordOffset + ZIP64_END.bytes > locatorOffset) throw damaged(where)
  const record = viewOf(await source.read(recordOffset, ZIP64_END.bytes))
  if (record.getUint32(0, true) !== ZIP64_END.signature) throw damaged(where)
  return {
    start: sizeAt(record, 48, where),
    byteLength: sizeAt(record, 40, where),
    count: sizeAt(record, 32, where),
    end: recordOffset,
  }
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

/** Fills in the sizes and the offset that do not fit 32 bits (APPNOTE 4.5.3). */
function readZip64(view: DataView, start: number, byteLength: number, values: number[], where: string): void {
  if (!values.includes(0xffffffff)) return
  for (let at = start; at + 4 <= start + byteLength; ) {
    const fieldBytes = view.getUint16(at + 2, true)
    const end = at + 4 + fieldBytes
    if (end > start + byteLength) break
    if (view.getUint16(at, true) === ZIP64_EXTRA) {
      let field = at + 4
      for (const [i, value] of values.entries()) {
        if (value !== 0xffffffff) continue
        if (field + 8 > end) throw damaged(where)
        values[i] = sizeAt(view, field, where)
        field += 8
      }
      return
    }
    at = end
  }
}

/** 64 bits, as far as numbers are exact. */
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

const TABLES = makeTables()

function makeTables(): Uint32Array[] {
  const first = Uint32Array.from({ length: 256 }, (_, byte) => {
    let value = byte
    for (let bit = 0; bit < 8; bit++) value = value & 1 ? (value >>> 1) ^ 0xedb88320 : value >>> 1
    return value
  })
  const tables = [first]
  for (let i = 1; i < 4; i++) tables.push(tables[i - 1].map((value) => (value >>> 8) ^ first[value & 0xff]))
  return tables
}

/** CRC-32 of bytes, after those that `crc` is of (ISO 3309, polynomial 0xedb88320): four bytes a step. */
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
