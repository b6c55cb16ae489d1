// Turns the sources that callers pass into folders and files: paths, ids, URLs, picked files, and Directory objects.

import { type ByteSource, closing, type Directory, type Place, type Source, type Target } from '../core/base/bytes.js'
import { FileError } from '../core/base/errors.js'
import { checkArgument, hasMethods } from '../core/base/options.js'
import { isDirectory } from '../files/data/row.js'
import type { RemoteOptions } from '../files/io/hub/directory.js'
import { FilesDirectory } from '../files/io/web/directories.js'
import { BlobSource } from '../files/io/web/files.js'
import type { LoraAdapter } from '../lora/adapter.js'
import { isAdapter, type RunAdapter } from '../lora/run-adapter.js'
import { ADAPTER_SOURCE, isBlob, isPath, SOURCE, TARGET } from '../model/source-values.js'
import type { Data, TrainingData } from '../train/options.js'
import { hearing, hubOptions } from './hub.js'
import { platform } from './platform/platform.js'

export async function openSource(source: Source, where: string, options: RemoteOptions = {}): Promise<Place> {
  checkArgument(source, SOURCE, where)
  if (typeof source === 'string') {
    const { on = { download: platform().watchDownloads?.() }, ...hub } = hubOptions()
    return platform().open(source, where, { ...hub, ...hearing(on), ...options })
  }
  return { directory: isDirectory(source) ? source : new FilesDirectory(source), file: undefined }
}

export async function openFolder(source: Source, where: string, options: RemoteOptions = {}): Promise<Directory> {
  const { directory, file } = await openSource(source, where, options)
  if (file === undefined) return directory
  throw new FileError({ where: `${directory.name}/${file}`, what: 'a file, and not a folder', hint: 'Name its folder' })
}

export function openTarget(target: Target, where: string): Directory {
  checkArgument(target, TARGET, where)
  return typeof target === 'string' ? platform().target(target, where) : target
}

export async function adapterOrFolder(
  adapter: Source | LoraAdapter,
  where: string,
  options: RemoteOptions = {},
): Promise<LoraAdapter | Directory> {
  if (isAdapter(adapter)) return adapter
  checkArgument(adapter, ADAPTER_SOURCE, where)
  return openFolder(adapter, where, options)
}

/** Opens an adapter only to run it. For a plain LoRA, the code that computes with layers is not loaded. */
export async function openToRun(adapter: Source | LoraAdapter, where: string): Promise<RunAdapter> {
  const opened = await adapterOrFolder(adapter, where)
  if (isAdapter(opened)) return opened
  return closing(await (await import('../lora/peft/open.js')).openAdapter(opened), (folder) => folder.loadToRun())
}

export async function openData(data: Data, where: string, onOpen: (file: ByteSource) => void): Promise<TrainingData> {
  const isNamed = (item: unknown): item is string | Blob => isPath(item) || isBlob(item)
  const open = async (item: unknown): Promise<ByteSource | Directory> => {
    if (!isNamed(item)) return item as ByteSource | Directory
    const opened = typeof item === 'string' ? await platform().openData(item, where) : new BlobSource(item)
    if ('read' in opened) onOpen(opened)
    return opened
  }
  if (isNamed(data)) return open(data)
  // If the first item of a list is a file, all items are: records and files are never mixed.
  const first = Array.isArray(data) ? data[0] : isFileList(data) ? data[0] : undefined
  if (!isNamed(first)) return data as TrainingData
  const opened: (ByteSource | Directory)[] = []
  for (const item of data as Iterable<unknown>) opened.push(await open(item))
  return opened
}

function isFileList(value: unknown): value is ArrayLike<unknown> {
  return hasMethods(value, 'item') && typeof (value as { length?: unknown }).length === 'number'
}
