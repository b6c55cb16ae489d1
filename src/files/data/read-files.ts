// Reads data files as rows, each by its format. The files of a folder follow one another.

import { type ByteSource, type Directory, sniff } from '../../core/base/bytes.js'
import { DataError, listed } from '../../core/base/errors.js'
import { readDelimited } from './delimited.js'
import { readJsonLines, readJsonList } from './json.js'
import type { ColumnNames, OnInvalid, Row } from './row.js'
import { checkLength, contentOf, PACKED, textLines } from './text-chunks.js'

export interface ReadOptions {
  readonly columns?: ColumnNames | undefined
  /** What messages call records in memory. Default `data`. */
  readonly name?: string
  /** Receives the error of each record that is skipped. Default: the first error is thrown. */
  readonly onInvalid?: OnInvalid | undefined
}

const NO_DATA = /^(\.|readme|licen[cs]e|dataset_infos?)/i

const MODEL_CONFIGS = ['config.json', 'adapter_config.json']

/** Words in file names that say which split of a data set a file holds. */
const SPLIT_NAME = /(?:^|[._/-])(train|training|test|valid|validation|dev|eval)(?=[._/-]|$)/i

export async function* rowsOfFile(source: ByteSource, options: ReadOptions): AsyncGenerator<Row> {
  const { columns, onInvalid } = options
  switch (await detectFormat(source)) {
    case 'jsonl':
      return yield* readJsonLines(source, onInvalid)
    case 'json-array':
      return yield* readJsonList(source, onInvalid)
    case 'csv':
      return yield* readDelimited(source, undefined, onInvalid)
    case 'tsv':
      return yield* readDelimited(source, '\t', onInvalid)
    case 'parquet': {
      const { readParquet } = await import('./parquet.js')
      return yield* readParquet(source, columns)
    }
    case 'text':
      return yield* readParagraphs(source)
  }
}

/** The rows of the data files directly in a folder, in the order of their names. Other files are ignored. */
export async function* rowsOfFolder(directory: Directory, options: ReadOptions): AsyncGenerator<Row> {
  const all = await directory.list()
  const config = MODEL_CONFIGS.find((name) => all.includes(name))
  if (config !== undefined) {
    throw new DataError({
      where: directory.name,
      what: `this folder holds a model or an adapter (${config}), not data`,
      hint: 'Name the files of data themselves',
    })
  }
  const files = all.filter((file) => formatOfName(file) !== undefined && !NO_DATA.test(file))
  if (files.length === 0) {
    throw new DataError({
      where: directory.name,
      what: 'no data in this folder',
      expected: `files that end in ${DATA_ENDINGS}`,
      got: all.length === 0 ? 'no files' : listed(all),
    })
  }
  const splits = new Set(files.map((file) => SPLIT_NAME.exec(file)?.[1].toLowerCase().slice(0, 5)))
  if (splits.size > 1) {
    throw new DataError({
      where: directory.name,
      what: 'the files look like parts for training and for testing',
      got: listed(files),
      hint: 'Name the file or files to use',
    })
  }
  for (const file of files) {
    const source = await directory.open(file)
    try {
      yield* rowsOfFile(source, options)
    } finally {
      await source.close()
    }
  }
}

/** A record for each paragraph. Lines would be too short, because people break them, and a whole file would not fit. */
async function* readParagraphs(source: ByteSource): AsyncGenerator<Row> {
  let lines: string[] = []
  let length = 0
  let first = 1
  const record = (): Row => {
    const row = { text: lines.join('\n') }
    lines = []
    length = 0
    return { row, where: `${source.name}, line ${first}` }
  }
  for await (const { text, number } of textLines(source)) {
    if (text.trim() === '') {
      if (lines.length > 0) yield record()
      continue
    }
    if (lines.length === 0) first = number
    lines.push(text)
    length += text.length
    checkLength(length, `${source.name}, line ${first}`)
  }
  if (lines.length > 0) yield record()
}

type DataFormat = 'jsonl' | 'json-array' | 'csv' | 'tsv' | 'parquet' | 'text'

/** The format by the end of the name. A `.json` file holds a list or lines; its content tells which. */
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

/** Enough to look past a byte order mark and a few empty lines. */
const HEAD_BYTES = 4096

/** A list of records that is the field "data" of one object. In lines, it is a field of each record. */
const LIST_OF_DATA = /^\s*\{\s*"data"\s*:\s*\[/
const LINES = /\.(jsonl|ndjson)\b/i

const DATA_ENDINGS = '.jsonl, .json, .csv, .tsv, .parquet or .txt, or packed: .jsonl.gz'

function formatOfName(name: string): DataFormat | 'json' | undefined {
  const ending = /\.(\w+)(?:[?#].*)?$/.exec(name.replace(PACKED, ''))?.[1].toLowerCase()
  return ending === undefined || !Object.hasOwn(BY_ENDING, ending) ? undefined : BY_ENDING[ending]
}

export async function detectFormat(source: ByteSource): Promise<DataFormat> {
  const isPacked = PACKED.test(source.name)
  const head = isPacked ? await startOf(source) : await source.read(0, Math.min(HEAD_BYTES, source.byteLength))
  const text = new TextDecoder().decode(head)
  if (text.startsWith('PAR1')) return 'parquet'
  const named = formatOfName(source.name)
  const recognized = named === 'text' || isPacked ? undefined : await sniff(source)
  if (recognized !== undefined)
    throw new DataError({ where: source.name, what: `not records but ${recognized.name}`, hint: recognized.hint })
  if (named !== undefined && named !== 'json') return named
  const first = text.trimStart()[0]
  if (first === '[' || (LIST_OF_DATA.test(text) && !LINES.test(source.name))) return 'json-array'
  if (first === '{' || named === 'json') return 'jsonl'
  throw new DataError({
    where: source.name,
    what: 'unknown file format',
    expected: `a name that ends in ${DATA_ENDINGS}`,
  })
}

async function startOf(source: ByteSource): Promise<Uint8Array | undefined> {
  for await (const part of contentOf(source)) return part.subarray(0, HEAD_BYTES)
  return undefined
}
