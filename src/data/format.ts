// The format of a file of records, by its name, or by its first bytes where the name does not tell.

import type { ByteSource } from '../base/bytes.js'
import { DataError } from '../base/errors.js'
import { sniff } from '../base/sniff.js'

export type DataFormat = 'jsonl' | 'json-array' | 'csv' | 'tsv' | 'parquet' | 'text'

/** The format by the end of the name. `.json` is either a list or lines, so its content tells. */
const BY_ENDING: Readonly<Record<string, DataFormat | 'json'>> = {
  jsonl: 'json',
  ndjson: 'json',
  json: 'json',
  csv: 'csv',
  tsv: 'tsv',
  tab: 'tsv',
  parquet: 'parquet',
  txt: 'text',
}

/** Enough to see past a byte order mark and some empty lines. */
const HEAD_BYTES = 4096

export const DATA_ENDINGS = '.jsonl, .json, .csv, .tsv, .parquet or .txt'

export function formatOfName(name: string): DataFormat | 'json' | undefined {
  const ending = /\.(\w+)(?:[?#].*)?$/.exec(name)?.[1].toLowerCase()
  return ending === undefined || !Object.hasOwn(BY_ENDING, ending) ? undefined : BY_ENDING[ending]
}

export async function detectFormat(source: ByteSource): Promise<DataFormat> {
  const head = await source.read(0, Math.min(HEAD_BYTES, source.byteLength))
  const text = new TextDecoder().decode(head)
  if (text.startsWith('PAR1')) return 'parquet'
  const named = formatOfName(source.name)
  const other = named === 'text' ? undefined : await sniff(source)
  if (other !== undefined)
    throw new DataError({ where: source.name, what: `no records but ${other.name}`, hint: other.hint })
  if (named !== undefined && named !== 'json') return named
  const first = text.trimStart()[0]
  if (first === '[') return 'json-array'
  if (first === '{' || named === 'json') return 'jsonl'
  throw new DataError({
    where: source.name,
    what: 'unknown file format',
    expected: `a name that ends in ${DATA_ENDINGS}`,
  })
}
