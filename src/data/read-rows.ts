// Data in any of its forms → one stream of rows: files by their format, several files, a folder, or records in memory. Knows
// nothing of tokens or tasks.

import type { ByteSource, Directory } from '../base/bytes.js'
import { ConfigError, DataError, listed } from '../base/errors.js'
import { type ColumnNames, checkColumnNames, renameColumns } from './columns.js'
import { readDelimited } from './delimited.js'
import { DATA_ENDINGS, detectFormat, formatOfName } from './format.js'
import { readJsonArray, readJsonLines } from './json.js'
import { readParagraphs } from './paragraphs.js'
import type { Row } from './row.js'
import { type DataSource, isByteSource, isDirectory, isIterable } from './source.js'

/** How rows are read. */
export interface ReadOptions {
  /** Name that is wanted → the data's own name for it. The row then has these fields alone. */
  readonly columns?: ColumnNames | undefined
  /** What records in memory are called in messages. Default `data`. */
  readonly name?: string
}

/** Files beside data that have the endings of data. */
const NO_DATA = /^(\.|readme|licen[cs]e|dataset_infos?)/i

/** What only folders of models and adapters have. */
const MODEL_CONFIGS = ['config.json', 'adapter_config.json']

/** Parts of file names that say which share of a data set a file holds. */
const SPLIT_NAME = /(?:^|[._/-])(train|training|test|valid|validation|dev|eval)(?=[._/-]|$)/i

/**
 * All rows, in order, each with where it is: `chats.jsonl, line 3`, `data[2]`.
 *
 * @throws ConfigError when the data or `columns` is none of what they can be; DataError naming file and line where a file is not
 *   what its format asks for, a folder holds no data, or `columns` names a field that a row lacks; UnsupportedError for Parquet
 *   without hyparquet; FileError when a file cannot be read
 */
export async function* readRows(data: DataSource, options: ReadOptions = {}): AsyncGenerator<Row> {
  const { columns, name = 'data' } = options
  checkColumnNames(columns)
  for await (const row of rowsOf(data, name, columns)) yield columns === undefined ? row : renameColumns(row, columns)
}

async function* rowsOf(data: DataSource, name: string, columns: ColumnNames | undefined): AsyncGenerator<Row> {
  if (isByteSource(data)) yield* rowsOfFile(data, columns)
  else if (isDirectory(data)) yield* rowsOfFolder(data, columns)
  else if (isIterable(data)) {
    let index = 0
    for await (const item of data) {
      if (isByteSource(item) || isDirectory(item)) yield* rowsOf(item, name, columns)
      else yield { row: item, where: `${name}[${index}]` }
      index++
    }
  } else {
    throw new ConfigError({
      where: name,
      what: 'neither records nor a file',
      got: data === null ? 'null' : typeof data,
    })
  }
}

async function* rowsOfFile(source: ByteSource, columns: ColumnNames | undefined): AsyncGenerator<Row> {
  switch (await detectFormat(source)) {
    case 'jsonl':
      return yield* readJsonLines(source)
    case 'json-array':
      return yield* readJsonArray(source)
    case 'csv':
      return yield* readDelimited(source)
    case 'tsv':
      return yield* readDelimited(source, '\t')
    case 'parquet': {
      const { readParquet } = await import('./parquet/read-parquet.js')
      return yield* readParquet(source, columns)
    }
    case 'text':
      return yield* readParagraphs(source)
  }
}

/** The data files directly in a folder, by name. Other files are left alone. */
async function* rowsOfFolder(directory: Directory, columns: ColumnNames | undefined): AsyncGenerator<Row> {
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
      yield* rowsOfFile(source, columns)
    } finally {
      await source.close()
    }
  }
}
