// A folder that is dropped on the page: a model, an adapter, pictures, or nothing of these.

import { PICTURE, type Picture, picturesOf } from './data.js'
import { guarded } from './dom.js'

interface Takers {
  model(files: readonly File[]): Promise<void>
  adapter(name: string, files: readonly File[]): Promise<void>
  pictures(pictures: readonly Picture[]): void
}

/** Opens folders that are dropped anywhere; single files are left to whatever they are dropped on. */
export function setUpDrop(takers: Takers): void {
  document.addEventListener('dragover', (event) => event.preventDefault())
  document.addEventListener('drop', (event) => {
    event.preventDefault()
    const entry = [...(event.dataTransfer?.items ?? [])].map((item) => item.webkitGetAsEntry()).find(isFolder)
    if (entry === undefined) return
    void guarded('train', 'The folder cannot be opened', async () => {
      const files = await filesOf(entry)
      const has = (name: RegExp) => files.some(({ webkitRelativePath }) => name.test(webkitRelativePath))
      if (has(/^[^/]+\/adapter_config\.json$/)) return takers.adapter(entry.name, files)
      if (has(/^[^/]+\/config\.json$/) || has(/\.onnx$/)) return takers.model(files)
      if (has(PICTURE)) return takers.pictures(picturesOf(files))
      throw new Error(
        `${entry.name}: neither a model nor an adapter. A model has config.json and an .onnx file, an adapter has adapter_config.json. Pictures lie in a folder for each label.`,
      )
    })
  })
}

function isFolder(entry: FileSystemEntry | null): entry is FileSystemDirectoryEntry {
  return entry?.isDirectory === true
}

/** The files of a folder, each with its path as files of a picked folder have it. */
async function filesOf(folder: FileSystemDirectoryEntry): Promise<File[]> {
  const reader = folder.createReader()
  const files: File[] = []
  // A reader gives some entries at a time, and none at the end.
  for (;;) {
    const entries = await new Promise<FileSystemEntry[]>((resolve, reject) => reader.readEntries(resolve, reject))
    if (entries.length === 0) return files
    for (const entry of entries) {
      if (isFolder(entry)) files.push(...(await filesOf(entry)))
      else files.push(await fileOf(entry as FileSystemFileEntry))
    }
  }
}

async function fileOf(entry: FileSystemFileEntry): Promise<File> {
  const file = await new Promise<File>((resolve, reject) => entry.file(resolve, reject))
  return Object.defineProperty(file, 'webkitRelativePath', { value: entry.fullPath.slice(1) })
}
