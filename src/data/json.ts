// JSON data in both forms: one record on each line (JSONL), and a list of records, which is read element by element.

import type { ByteSource } from '../base/bytes.js'
import { DataError } from '../base/errors.js'
import { type OnInvalid, type Row, unlessInvalid } from './row.js'
import { checkLength, textChunks, textLines } from './text-chunks.js'

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

const [QUOTE, BACKSLASH, NEWLINE, COMMA] = ['"', '\\', '\n', ','].map((character) => character.charCodeAt(0))
const OPENING = new Set([...'[{'].map((character) => character.charCodeAt(0)))
const CLOSING = new Set([...']}'].map((character) => character.charCodeAt(0)))

/** Reads a list of records. This only finds where an element ends; JSON.parse reads and checks the element. */
export async function* readJsonArray(source: ByteSource, onInvalid?: OnInvalid): AsyncGenerator<Row> {
  const { name } = source
  let line = 1
  let firstLine = 1
  let depth = 0
  let isString = false
  let isEscaped = false
  let isClosed = false
  let count = 0
  let parts: string[] = []
  let length = 0
  const here = () => `${name}, record ${count + 1} (line ${firstLine})`

  const element = (last: string): Row[] => {
    const where = here()
    const text = parts.join('') + last
    parts = []
    length = 0
    count++
    const row = unlessInvalid(() => {
      if (text.trim() === '') throw new DataError({ where, what: 'no record between two commas' })
      return { row: parseJson(text, where, 'The file is one list of JSON objects'), where }
    }, onInvalid)
    return row === undefined ? [] : [row]
  }

  for await (const chunk of textChunks(source)) {
    let start = 0
    for (let i = 0; i < chunk.length; i++) {
      const code = chunk.charCodeAt(i)
      if (code === NEWLINE) line++
      if (isString) {
        if (isEscaped) isEscaped = false
        else if (code === BACKSLASH) isEscaped = true
        else if (code === QUOTE) isString = false
        continue
      }
      if (code <= 32) continue
      if (isClosed) {
        throw new DataError({ where: `${name}, line ${line}`, what: 'more text after the list of records has ended' })
      }
      if (depth === 0) {
        // The caller has checked that the file begins with “[”.
        depth = 1
        start = i + 1
        continue
      }
      if (length === 0 && chunk.slice(start, i).trim() === '') firstLine = line
      if (code === QUOTE) isString = true
      else if (OPENING.has(code)) depth++
      else if (code === COMMA && depth === 1) {
        yield* element(chunk.slice(start, i))
        start = i + 1
      } else if (CLOSING.has(code)) {
        depth--
        if (depth > 0) continue
        isClosed = true
        const last = chunk.slice(start, i)
        const isEmptyList = count === 0 && length === 0 && last.trim() === ''
        if (!isEmptyList) yield* element(last)
      }
    }
    if (isClosed || depth === 0) continue
    const rest = chunk.slice(start)
    if (length > 0 || rest.trim() !== '') {
      parts.push(rest)
      length += rest.length
    }
    checkLength(length, here())
  }
  if (!isClosed) {
    throw new DataError({
      where: here(),
      what: 'the file ends inside the list of records',
      hint: 'It may be cut short',
    })
  }
}
