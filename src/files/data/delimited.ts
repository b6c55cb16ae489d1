// Reads CSV and TSV (RFC 4180). The first line names the columns, and all values are text. Quoted fields may contain
// the divider, line breaks and doubled quotes. The file is read in chunks, and a field may span several of them.

import type { ByteSource } from '../../core/base/bytes.js'
import { DataError } from '../../core/base/errors.js'
import { type OnInvalid, type Row, unlessInvalid } from './row.js'
import { checkLength, MAX_RECORD_LENGTH, textChunks } from './text-chunks.js'

/** The characters that may divide the fields of a .csv file. In many countries programs write semicolons. */
const DIVIDERS = [',', ';', '\t']

interface Fields {
  readonly fields: string[]
  readonly line: number
}

/** Reads a file's records. Without `divider`, it is the divider that occurs most often in the first line. */
export async function* readDelimited(source: ByteSource, divider?: string, onInvalid?: OnInvalid): AsyncGenerator<Row> {
  let columns: string[] | undefined
  for await (const { fields, line } of records(source, divider)) {
    const where = `${source.name}, line ${line}`
    if (columns === undefined) {
      columns = checkColumns(fields, where)
      continue
    }
    const names = columns
    const row = unlessInvalid(() => ({ row: named(fields, names, where), where }), onInvalid)
    if (row !== undefined) yield row
  }
}

function named(fields: readonly string[], columns: readonly string[], where: string): Record<string, string> {
  if (fields.length === columns.length) return Object.fromEntries(fields.map((value, i) => [columns[i], value]))
  throw new DataError({
    where,
    what: fields.length > columns.length ? 'more fields than columns' : 'fewer fields than columns',
    expected: `${columns.length} (${columns.slice(0, 8).join(', ')})`,
    got: String(fields.length),
    hint: 'Put a field in quotes if it contains the separator or a line break',
  })
}

function checkColumns(fields: readonly string[], where: string): string[] {
  const columns = fields.map((field) => field.trim())
  const empty = columns.indexOf('')
  if (empty >= 0) {
    throw new DataError({ where, what: `column ${empty + 1} has no name`, hint: 'The first line names the columns' })
  }
  const seen = new Set<string>()
  const twice = columns.find((column) => seen.size === seen.add(column).size)
  if (twice !== undefined) throw new DataError({ where, what: `two columns have the name "${twice}"` })
  return columns
}

function dividerOf(text: string): string {
  const bare = text.replace(/"[^"]*"/g, '')
  const end = bare.search(/[\r\n]/)
  const first = end < 0 ? bare : bare.slice(0, end)
  const counts = DIVIDERS.map((divider) => first.split(divider).length)
  return DIVIDERS[counts.indexOf(Math.max(...counts))]
}

/** Even an empty field takes as much memory as this many characters. */
const FIELD_COST = 16

const [QUOTE, RETURN, NEWLINE] = ['"', '\r', '\n'].map((character) => character.charCodeAt(0))

type State = 'start of field' | 'plain field' | 'quoted field' | 'after quote'

async function* records(source: ByteSource, given: string | undefined): AsyncGenerator<Fields> {
  let dividing = given?.charCodeAt(0)
  let state = 'start of field' as State
  let fields: string[] = []
  /** The size of the record's finished fields for `checkLength`: their characters, and FIELD_COST for each field. */
  let taken = 0
  /** The beginning of the current field: what earlier chunks had of it, or what stands before a doubled quote. */
  let begun = ''
  let line = 1
  let recordLine = 1
  let quoteLine = 1

  const endRecord = (): Fields | undefined => {
    const record = { fields, line: recordLine }
    fields = []
    taken = 0
    recordLine = line
    return record.fields.length === 1 && record.fields[0].trim() === '' ? undefined : record
  }

  for await (const chunk of textChunks(source)) {
    dividing ??= dividerOf(chunk).charCodeAt(0)
    let start = 0
    for (let i = 0; i < chunk.length; i++) {
      const code = chunk.charCodeAt(i)
      if (code === NEWLINE) line++
      if (state === 'quoted field') {
        if (code !== QUOTE) continue
        begun += chunk.slice(start, i)
        state = 'after quote'
      } else if (state === 'after quote' && code === QUOTE) {
        // A doubled quote stands for one quote, and the field goes on.
        start = i
        state = 'quoted field'
      } else if (state === 'start of field' && code === QUOTE) {
        quoteLine = line
        start = i + 1
        state = 'quoted field'
      } else if (code === dividing || code === NEWLINE) {
        const isQuoted = state === 'after quote'
        const field: string = isQuoted ? begun : begun + chunk.slice(start, i)
        fields.push(code === NEWLINE && !isQuoted && field.endsWith('\r') ? field.slice(0, -1) : field)
        taken += field.length + FIELD_COST
        begun = ''
        start = i + 1
        state = 'start of field'
        if (code !== NEWLINE) continue
        const record = endRecord()
        if (record !== undefined) yield record
      } else if (state === 'after quote') {
        if (code === RETURN) continue
        throw new DataError({
          where: `${source.name}, line ${line}`,
          what: 'text after the quote that ends a field',
          got: JSON.stringify(chunk.slice(i, i + 20)),
          hint: 'A quote inside a quoted field is written twice',
        })
      } else if (state === 'start of field') {
        start = i
        state = 'plain field'
      }
    }
    if (state === 'plain field' || state === 'quoted field') begun += chunk.slice(start)
    const from = state === 'quoted field' && begun.length > MAX_RECORD_LENGTH ? quoteLine : recordLine
    checkLength(taken + begun.length, `${source.name}, line ${from}`)
  }
  if (state === 'quoted field') {
    throw new DataError({
      where: `${source.name}, line ${quoteLine}`,
      what: 'a quote that never closes',
      hint: 'A quote inside a quoted field is written twice',
    })
  }
  if (state !== 'start of field' || fields.length > 0) {
    fields.push(begun.endsWith('\r') && state === 'plain field' ? begun.slice(0, -1) : begun)
    const record = endRecord()
    if (record !== undefined) yield record
  }
}
