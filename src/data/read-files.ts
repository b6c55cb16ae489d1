// Files of data → rows: each by its format, and those of a folder one after another.

import type { ByteSource, Directory } from '../base/bytes.js'
import { DataError, listed } from '../base/errors.js'
import type { ColumnNames } from './columns.js'
import { readDelimited } from './delimited.js'
import { DATA_ENDINGS, detectFormat, formatOfName } from './format.js'
import { readJsonArray, readJsonLines } from './json.js'
import type { OnInvalid, Row } from './row.js'
import { checkLength, textLines } from './text-chunks.js'

export interface ReadOptions {
  readonly columns?: ColumnNames | undefined
  /** The name of records in memory, for messages. Default `data`. */
  readonly name?: string
  /** Takes the errors of records that are passed over. Default: the first one is thrown. */
  readonly onInvalid?: OnInvalid | undefined
}

const NO_DATA = /^(\.|readme|licen[cs]e|dataset_infos?)/i

const MODEL_CONFIGS = ['config.json', 'adapter_config.json']

/** Parts of file names that say which share of a data set a file holds. */
const SPLIT_NAME = /(?:^|[._/-])(train|training|test|valid|validation|dev|eval)(?=[._/-]|$)/i

export async function* rowsOfFile(source: ByteSource, options: ReadOptions): AsyncGenerator<Row> {
  const { columns, onInvalid } = options
  switch (await detectFormat(source)) {
    case 'jsonl':
      return yield* readJsonLines(source, onInvalid)
    case 'json-array':
      return yield* readJsonArray(source, onInvalid)
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

/** The data files directly in a folder, by name. Other files are left alone. */
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

/** Not lines, because people break lines in a paragraph, and not the file, of which most would not fit the context. */
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
