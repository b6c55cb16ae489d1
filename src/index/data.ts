// Forms of `data` in train: records in memory, or files and folders however they are named.

import type { ByteSource, Directory } from '../base/bytes.js'
import type { BlobLike } from '../base/globals.js'
import { hasMethods } from '../base/options.js'
import { BlobSource } from '../io/web/files.js'
import type { TextRecord } from '../text/records.js'
import type { TrainingData } from '../train/options.js'
import { isBlob, isPath } from './kinds.js'
import { platform } from './platform/platform.js'

/**
 * A file of records, or a folder of such files: its path (not in browsers), a Blob such as a picked File, or one that
 * is open.
 */
export type DataFile = string | BlobLike | ByteSource | Directory

/**
 * One record: a {@link TextRecord}, one with other field names (`columns`), or one of another task, such as `{ text,
 * label }`.
 */
export type DataRecord = TextRecord | Readonly<Record<string, unknown>>

/** Records, or files of them: JSONL, JSON, CSV, TSV, Parquet, text. */
export type Data = DataFile | readonly DataFile[] | Iterable<DataRecord> | AsyncIterable<DataRecord>

export async function openData(data: Data, where: string, onOpen: (file: ByteSource) => void): Promise<TrainingData> {
  const isNamed = (item: unknown): item is string | Blob => isPath(item) || isBlob(item)
  const open = async (item: unknown): Promise<ByteSource | Directory> => {
    if (!isNamed(item)) return item as ByteSource | Directory
    const opened = typeof item === 'string' ? await platform().openData(item, where) : new BlobSource(item)
    if ('read' in opened) onOpen(opened)
    return opened
  }
  if (isNamed(data)) return open(data)
  // A list names files when its first item does: whoever has records has no paths among them.
  const first = Array.isArray(data) ? data[0] : isFileList(data) ? data[0] : undefined
  if (!isNamed(first)) return data as TrainingData
  const opened: (ByteSource | Directory)[] = []
  for (const item of data as Iterable<unknown>) opened.push(await open(item))
  return opened
}

function isFileList(value: unknown): value is ArrayLike<unknown> {
  return hasMethods(value, 'item') && typeof (value as { length?: unknown }).length === 'number'
}
