// The digest of a plan: processes that have the same one make the same files, and may share what is finished.

import { createHash, type Hash } from 'node:crypto'
import { crc32 } from 'node:zlib'
import type { ByteSource } from '../../base/bytes.js'
import type { OpenMerge } from '../open.js'

const SAMPLES = 256
const SAMPLE_BYTES = 64 << 10
/** Files of a base up to this size are read whole, larger ones in samples. */
const WHOLE_BYTES = SAMPLES * SAMPLE_BYTES
const READ_BYTES = 4 << 20

/**
 * Digest of the effects of the options, all bytes of the adapters, and for each file of the base its header, its size
 * and, above 16 MiB, 256 pieces of 64 KiB from its first byte to its last. Where files lie and when they were written
 * does not count.
 *
 * @param sign −1 to unmerge
 */
export async function digestOfPlan(
  { files, others, sources, baseFiles, isReproducible }: OpenMerge,
  sign: 1 | -1,
): Promise<string> {
  const hash = createHash('sha256')
  const segments = files.map(({ literals: _, ...file }) => file)
  const small = others.map(({ path, byteLength, text }) => ({ path, byteLength, text }))
  hash.update(JSON.stringify({ version: 5, segments, small, sign, isReproducible }, withoutPlace))
  for (const { bytes } of files.flatMap(({ literals }) => literals)) if (typeof bytes !== 'function') hash.update(bytes)
  for (const source of sources) {
    const headerBytes = baseFiles.get(source)
    const isWhole = headerBytes === undefined || source.byteLength <= WHOLE_BYTES
    await addRange(hash, source, 0, isWhole ? source.byteLength : headerBytes)
    for (let i = 0; !isWhole && i < SAMPLES; i++) {
      const at = Math.floor((i * (source.byteLength - SAMPLE_BYTES)) / (SAMPLES - 1))
      await addRange(hash, source, at, at + SAMPLE_BYTES)
    }
  }
  return hash.digest('hex').slice(0, 16)
}

/** Factors carry the name of the file that they are in. */
function withoutPlace(_key: string, value: unknown): unknown {
  const isFactor = typeof value === 'object' && value !== null && 'source' in value && 'offset' in value
  return isFactor ? { ...value, name: '' } : value
}

/** Adds the CRC-32s of a range: several times as fast as hashing its bytes, and sure to tell any change by accident. */
async function addRange(hash: Hash, source: ByteSource, start: number, end: number): Promise<void> {
  hash.update(`${source.byteLength} `)
  for (let at = start; at < end; at += READ_BYTES) {
    hash.update(`${crc32(await source.read(at, Math.min(READ_BYTES, end - at)))} `)
  }
}
