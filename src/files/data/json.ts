// JSON data in both forms: one record on each line (JSONL), and one list of records.

import type { ByteSource } from '../../core/base/bytes.js'
import { DataError } from '../../core/base/errors.js'
import { isObject } from '../../core/base/options.js'
import { type OnInvalid, type Row, unlessInvalid } from './row.js'
import { textChunks, textLines } from './text-chunks.js'

export async function* readJsonLines(source: ByteSource, onInvalid?: OnInvalid): AsyncGenerator<Row> {
  for await (const { text, number } of textLines(source)) {
    if (text.trim() === '') continue
    const where = `${source.name}, line ${number}`
    const hint = 'Each line is one JSON object, or the file is one list of them'
    const row = unlessInvalid(() => ({ row: parseJson(text, where, hint), where }), onInvalid)
    if (row !== undefined) yield row
  }
}

export function parseJson(text: string, where: string, hint?: string): unknown {
  try {
    return JSON.parse(text)
  } catch (cause) {
    throw new DataError({ where, what: `not valid JSON (${(cause as Error).message})`, hint, cause })
  }
}

/** The longest list of records, in characters. A longer text does not fit into a string of JavaScript. */
const MAX_LIST_LENGTH = 1 << 28

export async function* readJsonList(source: ByteSource, onInvalid?: OnInvalid): AsyncGenerator<Row> {
  const { name } = source
  if (source.byteLength > MAX_LIST_LENGTH) throw tooLong(name)
  const parts: string[] = []
  let length = 0
  for await (const chunk of textChunks(source)) {
    length += chunk.length
    if (length > MAX_LIST_LENGTH) throw tooLong(name)
    parts.push(chunk)
  }
  const rows = unlessInvalid(() => parseJson(parts.join(''), name, 'The file is one list of JSON objects'), onInvalid)
  const list = isObject(rows) && Array.isArray(rows.data) ? rows.data : rows
  for (const [i, row] of ((list ?? []) as unknown[]).entries()) yield { row, where: `${name}, record ${i + 1}` }
}

function tooLong(where: string): DataError {
  return new DataError({
    where,
    what: 'a list of records that is too long',
    expected: `at most ${MAX_LIST_LENGTH} bytes`,
    hint: 'Write one record in each line (.jsonl): such files may have any length',
  })
}
