// torch.save before 1.6, and since then with `_use_new_zipfile_serialization=False`: five pickles (a magic number, the
// protocol, the machine, the value, the storages' keys), then each storage as a 64-bit length and its elements.

import type { ByteSource } from '../../base/bytes.js'
import { FormatError, UnsupportedError } from '../../base/errors.js'
import { MAX_PICKLE_BYTES, type PickleHost, PickleTruncatedError, parsePickle } from './pickle.js'
import { PickleDict, PickleList, type PickleValue } from './pickle-values.js'
import { type TorchContent, TorchHost } from './rebuild.js'

const MAGIC = 0x1950a86a20f9469cfc6cn
const PROTOCOL = 1001
const FIRST_READ_BYTES = 1 << 16
const LENGTH_BYTES = 8

/**
 * The value that the file holds, and where its storages are.
 *
 * @throws FormatError or UnsupportedError, as parseTorchFile does
 */
export async function readLegacy(source: ByteSource): Promise<TorchContent> {
  const where = source.name
  const { pickles, host, end } = await readPickles(source)
  const [magic, protocol, machine, value, keys] = pickles
  if (magic !== MAGIC || protocol !== PROTOCOL || !(machine instanceof PickleDict) || !(keys instanceof PickleList)) {
    throw new FormatError({ where, what: 'a pickle, but not by torch.save' })
  }
  if (machine.entries.get('little_endian') !== true) {
    throw new UnsupportedError({ where, what: 'not in little-endian order', expected: 'little_endian: True' })
  }
  return { value, offsets: await locateStorages(source, keys, host.storages, end) }
}

/** Finds the first element of each storage: the storages lie one after the other, in the order of `keys`. */
async function locateStorages(
  source: ByteSource,
  keys: PickleList,
  storages: TorchHost['storages'],
  start: number,
): Promise<Map<string, number>> {
  const where = source.name
  const offsets = new Map<string, number>()
  let at = start
  for (const key of keys.items) {
    const storage = typeof key === 'string' ? storages.get(key) : undefined
    if (storage === undefined || offsets.has(storage.key)) {
      throw new FormatError({ where, what: 'the list of storages names one that no tensor has, or one twice' })
    }
    const elementsStart = at + LENGTH_BYTES
    if (elementsStart + storage.byteLength > source.byteLength) {
      throw new FormatError({
        where,
        what: 'a storage goes past the end of the file',
        expected: `at most ${source.byteLength} bytes`,
        got: `${elementsStart + storage.byteLength}`,
        hint: 'The file may be cut short: download it again',
      })
    }
    const header = await source.read(at, LENGTH_BYTES)
    const length = new DataView(header.buffer, header.byteOffset, LENGTH_BYTES).getBigUint64(0, true)
    if (length !== BigInt(storage.length)) {
      throw new FormatError({
        where: `${where}: byte ${at}`,
        what: 'a storage of another length than the pickle says',
        expected: `${storage.length}`,
        got: `${length}`,
      })
    }
    offsets.set(storage.key, elementsStart)
    at = elementsStart + storage.byteLength
  }
  if (offsets.size !== storages.size || at !== source.byteLength) {
    throw new FormatError({
      where,
      what: offsets.size !== storages.size ? 'a tensor without its storage' : 'bytes after the last storage',
    })
  }
  return offsets
}

/** How long the pickles are, only reading them tells: a file of tensors begins with a few kB of them. */
async function readPickles(source: ByteSource): Promise<{ pickles: PickleValue[]; host: TorchHost; end: number }> {
  const none: PickleHost = {
    global: () => undefined,
    persistent: (_, where) => {
      throw new FormatError({ where, what: 'a persistent id where there is no tensor' })
    },
  }
  for (let length = FIRST_READ_BYTES; ; length *= 4) {
    const bytes = await source.read(0, Math.min(length, MAX_PICKLE_BYTES, source.byteLength))
    const host = new TorchHost()
    const pickles: PickleValue[] = []
    let end = 0
    try {
      for (let i = 0; i < 5; i++) {
        const { value, end: next } = parsePickle(bytes, source.name, i === 3 ? host : none, end)
        pickles.push(value)
        end = next
      }
      return { pickles, host, end }
    } catch (error) {
      const isMore = bytes.byteLength < Math.min(source.byteLength, MAX_PICKLE_BYTES)
      if (!(error instanceof PickleTruncatedError && isMore)) throw error
    }
  }
}
