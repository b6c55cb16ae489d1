// Records in, records out: what `classify` and `embed` do with --data, for files of any size.

import { rowsOfInput } from '../../node/command-line.js'
import { flags } from '../flags.js'
import { choice, text, UsageError, type Values } from '../options.js'

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

export interface TextRow {
  readonly text: string
  readonly textPair?: string
}

export async function runRows(
  { data, columns, format }: RowValues,
  run: (rows: readonly TextRow[]) => Promise<readonly Readonly<Record<string, unknown>>[]>,
): Promise<number> {
  let isFirst = true
  let waiting: (TextRow & Record<string, unknown>)[] = []
  const flush = async () => {
    const results = await run(waiting)
    for (const [i, result] of results.entries()) {
      const record = { ...waiting[i], ...result }
      if (format === 'jsonl') write(JSON.stringify(record))
      else {
        if (isFirst) write(Object.keys(record).map(csvField).join(','))
        write(Object.values(record).map(csvField).join(','))
      }
      isFirst = false
    }
    waiting = []
  }
  for await (const row of rowsOfInput(data!, columns)) {
    waiting.push(row)
    if (waiting.length === TOGETHER) await flush()
  }
  if (waiting.length > 0) await flush()
  return 0
}

function write(line: string): void {
  process.stdout.write(`${line}\n`)
}

function csvField(value: unknown): string {
  const field = typeof value === 'object' ? JSON.stringify(value) : String(value)
  return /[",\r\n]/.test(field) ? `"${field.replaceAll('"', '""')}"` : field
}
