// Reads records and writes them with results, for `classify` and `embed` with --data. Files may have any size.

import { DataError } from '../../../api/index.js'
import { rowsOfInput, type TextRow } from '../../../api/node/command-line.js'
import { flags } from '../flags.js'
import { choice, text, UsageError, type Values } from '../options.js'
import { note } from '../show/terminal.js'

const TOGETHER = 64

export const ROW_OPTIONS = {
  data: text('FILE|-', 'file of records with "text"; - is standard input, with a record or a text in each line'),
  ...flags('CheckDataOptions', 'columns'),
  format: choice(['jsonl', 'csv'], 'with --data: the form of the result on stdout', 'jsonl'),
}

type RowValues = Values<typeof ROW_OPTIONS> & { readonly adapter: readonly string[]; readonly json: boolean }

export function checkRowOptions({ data, adapter, json }: RowValues, texts: number): void {
  if (data === undefined) return
  if (texts > 0) throw new UsageError('--data and --text cannot be used together')
  if (adapter.length > 1) throw new UsageError('--data takes one --adapter')
  if (json) throw new UsageError('--data and --json cannot be used together: --format jsonl has a record in each line')
}

export async function runRows(
  { data, columns, format }: RowValues,
  run: (rows: readonly TextRow[]) => Promise<readonly object[]>,
): Promise<number> {
  let names: string[] = []
  let added: string[] = []
  for await (const rows of groupsOf(rowsOfInput(data!, columns), TOGETHER)) {
    const results = await run(rows)
    for (const [i, result] of results.entries()) {
      const { record, where } = rows[i]
      if (added.length === 0) {
        added = Object.keys(result).map((name) => unusedName(name, record))
        names = [...Object.keys(record), ...added]
        if (format === 'csv') process.stdout.write(csvLine(names))
      }
      const unknown = Object.keys(record).find(
        (key) => added.includes(key) || (format === 'csv' && !names.includes(key)),
      )
      if (unknown !== undefined) {
        const hint = `Give it this field too, with the value null${format === 'csv' ? ', or write --format jsonl' : ''}`
        throw new DataError({ where, what: `the first record has no field "${unknown}"`, hint })
      }
      const row = { ...record, ...Object.fromEntries(Object.values(result).map((value, k) => [added[k], value])) }
      process.stdout.write(format === 'csv' ? csvLine(names.map((name) => row[name])) : `${JSON.stringify(row)}\n`)
    }
  }
  return 0
}

export async function* groupsOf<Item>(items: AsyncIterable<Item>, size: number): AsyncGenerator<Item[]> {
  let group: Item[] = []
  for await (const item of items) {
    group.push(item)
    if (group.length < size) continue
    yield group
    group = []
  }
  if (group.length > 0) yield group
}

/**
 * Returns a name for a new field. If the records have a field of this name, such as the right label, that field stays,
 * and the new field gets another name.
 */
function unusedName(name: string, record: object): string {
  let unused = name
  while (Object.hasOwn(record, unused)) unused = `predicted_${unused}`
  if (unused !== name) note(`The records have a field "${name}", so the new one is "${unused}"`)
  return unused
}

function csvLine(values: readonly unknown[]): string {
  const fields = values.map((value) => (typeof value === 'object' ? JSON.stringify(value) : String(value ?? '')))
  return `${fields.map((field) => (/[",\r\n]/.test(field) ? `"${field.replaceAll('"', '""')}"` : field)).join(',')}\n`
}
