// Files by hand that torch.save would not write: pickles from opcodes, and zip archives around them.

import { crc32 } from 'node:zlib'
import { concatBytes } from '../../src/base/bytes.js'

const text = new TextEncoder()

export type Part = Uint8Array | number[] | string

/** Strings are taken as they are, as in `'cposix\nsystem\n'`. */
export function bytesOf(...parts: readonly Part[]): Uint8Array {
  return concatBytes(parts.map((part) => (typeof part === 'string' ? text.encode(part) : Uint8Array.from(part))))
}

export const u16 = (value: number) => [value & 255, value >>> 8]
export const u32 = (value: number) => [...u16(value & 0xffff), ...u16(value >>> 16)]
export const u64 = (value: number) => [...u32(value % 2 ** 32), ...u32(Math.floor(value / 2 ** 32))]

export const PROTO = [0x80, 2]
export const unicode = (value: string) => bytesOf('X', u32(text.encode(value).length), value)
export const int = (value: number) => bytesOf('J', u32(value >>> 0))
/** Up to 63 bits. */
export const long = (value: number) => bytesOf([0x8a, 8], u64(value))
export const tuple = (...items: readonly Part[]) => bytesOf('(', ...items, 't')

export function storage(key: string, length: number, type = 'FloatStorage'): Uint8Array {
  const size = length < 2 ** 31 ? int(length) : long(length)
  return bytesOf(tuple(unicode('storage'), `ctorch\n${type}\n`, unicode(key), unicode('cpu'), size), 'Q')
}

const hooks = bytesOf('ccollections\nOrderedDict\n)R')
const size = (value: number) => (Math.abs(value) < 2 ** 31 ? int(value) : long(value))

export function tensor(of: Part, offset: number, shape: readonly number[], strides: readonly number[]): Uint8Array {
  const args = tuple(of, size(offset), tuple(...shape.map(size)), tuple(...strides.map(size)), [0x89], hooks)
  return bytesOf('ctorch._utils\n_rebuild_tensor_v2\n', args, 'R')
}

/** A dict by SETITEMS, and STOP. */
export function dict(entries: Readonly<Record<string, Part>>): Uint8Array {
  return bytesOf(PROTO, '}(', ...Object.entries(entries).flatMap(([key, value]) => [unicode(key), value]), 'u.')
}

export interface Entry {
  name: string
  data: Uint8Array
  method?: number
  flags?: number
  crc?: number
  /** What the directory says, where that is not so. */
  headerOffset?: number
  byteLength?: number
  /** Sizes and offset in the zip64 field. */
  zip64?: boolean
}

export function zip(entries: readonly Entry[], { zip64 = false } = {}): Uint8Array {
  const local: Uint8Array[] = []
  const central: Uint8Array[] = []
  let offset = 0
  for (const { name, data, method = 0, flags = 0, crc = crc32(data), ...wrong } of entries) {
    const header = bytesOf(
      'PK\x03\x04',
      u16(20),
      u16(flags),
      u16(method),
      u32(0),
      u32(crc),
      u32(data.length),
      u32(data.length),
    )
    const part = bytesOf(header, u16(text.encode(name).length), u16(5), name, 'extra', data)
    local.push(part)
    const byteLength = wrong.byteLength ?? data.length
    const headerOffset = wrong.headerOffset ?? offset
    const extra = wrong.zip64
      ? bytesOf(u16(1), u16(24), u64(byteLength), u64(byteLength), u64(headerOffset))
      : bytesOf()
    const [length, at] = wrong.zip64 ? [0xffffffff, 0xffffffff] : [byteLength, headerOffset]
    central.push(
      bytesOf('PK\x01\x02', u16(20), u16(20), u16(flags), u16(method), u32(0), u32(crc), u32(length), u32(length)),
      bytesOf(u16(text.encode(name).length), u16(extra.length), u16(0), u16(0), u16(0), u32(0), u32(at), name, extra),
    )
    offset += part.length
  }
  const directory = concatBytes(central)
  const record = bytesOf(
    'PK\x06\x06',
    u64(44),
    u16(45),
    u16(45),
    u32(0),
    u32(0),
    u64(entries.length),
    u64(entries.length),
  )
  const wide = bytesOf(
    record,
    u64(directory.length),
    u64(offset),
    'PK\x06\x07',
    u32(0),
    u64(offset + directory.length),
    u32(1),
  )
  const [count, length, start] = zip64 ? [0xffff, 0xffffffff, 0xffffffff] : [entries.length, directory.length, offset]
  const end = bytesOf('PK\x05\x06', u16(0), u16(0), u16(count), u16(count), u32(length), u32(start), u16(0))
  return concatBytes([...local, directory, ...(zip64 ? [wide] : []), end])
}

/** As torch.save lays it out. */
export function torchZip(pickle: Uint8Array, storages: Readonly<Record<string, Uint8Array>> = {}): Uint8Array {
  return zip([
    { name: 'archive/data.pkl', data: pickle },
    ...Object.entries(storages).map(([key, data]) => ({ name: `archive/data/${key}`, data })),
  ])
}
