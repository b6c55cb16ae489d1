// Unpacks golden suites into single files. Git keeps each suite in two tables; packed.py documents the format. Tests do
// this before they start.
//
//     node scripts/golden/packed.mjs

import { createHash } from 'node:crypto'
import { existsSync, mkdirSync, readdirSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'

const GOLDEN = fileURLToPath(new URL('../../tests/golden', import.meta.url))

/** Unpacks every suite whose tables changed since the last time. Vitest calls it as the global setup. */
export default function unpackAll() {
  for (const suite of readdirSync(GOLDEN)) {
    if (existsSync(join(GOLDEN, suite, 'tables.jsonl'))) unpack(join(GOLDEN, suite))
  }
}

function unpack(folder) {
  const [table, content] = ['tables.jsonl', 'tables.safetensors'].map((name) => readFileSync(join(folder, name)))
  const sum = sha256(Buffer.concat([table, content]))
  const stamp = join(folder, '.unpacked')
  const before = existsSync(stamp) ? JSON.parse(readFileSync(stamp, 'utf8')) : { sum: '', files: [] }
  if (before.sum === sum && before.files.every((file) => existsSync(join(folder, file)))) return
  const tensors = tensorsByFile(content)
  const written = new Map()
  for (const line of table.toString().trimEnd().split('\n')) {
    const { file, same, sha256: expected, metadata } = JSON.parse(line)
    if (same !== undefined) written.set(file, written.get(same))
    else if (expected === undefined) {
      // Copies the text instead of parsing it, so that numbers keep their spelling.
      written.set(file, Buffer.from(line.slice(`{"file":${JSON.stringify(file)},"json":`.length, -1)))
    } else {
      written.set(file, safetensors(tensors.get(file) ?? [], metadata))
      if (sha256(written.get(file)) !== expected) throw new Error(`${join(folder, file)} has other bytes than PEFT's`)
    }
    // Another process may be reading the file, so it is replaced by a rename.
    const path = join(folder, file)
    mkdirSync(dirname(path), { recursive: true })
    writeFileSync(`${path}.${process.pid}`, written.get(file))
    renameSync(`${path}.${process.pid}`, path)
  }
  for (const file of before.files) {
    if (!written.has(file)) rmSync(join(folder, file), { force: true })
  }
  writeFileSync(stamp, JSON.stringify({ sum, files: [...written.keys()] }))
}

/**
 * Returns the tensors of each file, in order. The joint file has the tensor `name` of the file `path` as `path/name`.
 */
function tensorsByFile(content) {
  const length = Number(content.readBigUInt64LE())
  const { __metadata__: _, ...table } = JSON.parse(content.subarray(8, 8 + length))
  const files = new Map()
  const order = Object.entries(table).sort(([, a], [, b]) => a.data_offsets[0] - b.data_offsets[0])
  for (const [key, { dtype, shape, data_offsets }] of order) {
    const end = key.indexOf('.safetensors/') + '.safetensors'.length
    const file = key.slice(0, end)
    const data = content.subarray(...data_offsets.map((offset) => 8 + length + offset))
    files.set(file, [...(files.get(file) ?? []), { name: key.slice(end + 1), dtype, shape, data }])
  }
  return files
}

/** Makes the same bytes as the safetensors library. */
function safetensors(tensors, metadata) {
  const entries = metadata === null ? [] : [['__metadata__', metadata]]
  let at = 0
  for (const { name, dtype, shape, data } of tensors) {
    entries.push([name, { dtype, shape, data_offsets: [at, at + data.length] }])
    at += data.length
  }
  const header = Buffer.from(JSON.stringify(Object.fromEntries(entries)))
  const padded = Buffer.alloc(Math.ceil(header.length / 8) * 8, ' ')
  header.copy(padded)
  const length = Buffer.alloc(8)
  length.writeBigUInt64LE(BigInt(padded.length))
  return Buffer.concat([length, padded, ...tensors.map(({ data }) => data)])
}

function sha256(bytes) {
  return createHash('sha256').update(bytes).digest('hex')
}

if (process.argv[1] === fileURLToPath(import.meta.url)) unpackAll()
