// Adapters in and out of the page: PEFT folders as zip archives, and the list of those that this browser keeps.

import { unzipSync, zipSync } from 'fflate'
import { type LoraAdapter, loadAdapter, MemoryDirectory, saveAdapter } from 'lowrank'
import { button, buttonOf, byId, guarded, make } from './dom.js'
import { type KeptAdapter, keptAdapters, keptFiles, removeKept, renameKept } from './store.js'

export function download(name: string, files: Record<string, Uint8Array>): void {
  const url = URL.createObjectURL(new Blob([zipSync(files, { level: 0 }) as BlobPart], { type: 'application/zip' }))
  const link = make('a', { href: url, download: `${name}.zip` })
  link.click()
  setTimeout(() => URL.revokeObjectURL(url), 60_000)
}

export async function filesOfAdapter(name: string, adapter: LoraAdapter): Promise<Record<string, Uint8Array>> {
  const folder = new MemoryDirectory()
  await saveAdapter(adapter, folder)
  return Object.fromEntries([...folder.files].map(([path, bytes]) => [`${name}/${path}`, bytes]))
}

export function setUpKept(use: (adapter: KeptAdapter) => Promise<void>): () => Promise<void> {
  const act = (label: string, work: () => Promise<unknown>) =>
    button(label, () => {
      void guarded('mine', 'My adapters', async () => {
        await work()
        await list()
      })
    })
  const row = (one: KeptAdapter, names: readonly string[]) => {
    const field = make('input', { value: one.name, maxlength: '40', 'aria-label': `Name of ${one.name}` })
    field.addEventListener('change', () => {
      void guarded('mine', 'The adapter cannot be renamed', async () => {
        const to = field.value.trim().replace(/[^\w.-]+/g, '-')
        const isTaken = names.includes(to)
        try {
          if (to === '' || isTaken)
            throw new Error(isTaken ? `There is ${to} already.` : 'A name has letters or digits.')
          await renameKept(one.name, to)
        } finally {
          await list()
        }
      })
    })
    const facts = `for ${one.modelName}, ${(one.bytes / 1e6).toFixed(1)} MB`
    return make(
      'li',
      { class: 'row', 'data-kept': one.name },
      field,
      make('span', { class: 'state' }, facts),
      act('Use', () => use(one)),
      act('Download', async () => download(one.name, await keptFiles([one.name]))),
      act('Delete', () => removeKept(one.name)),
    )
  }
  const list = async () => {
    const kept = await keptAdapters()
    const names = kept.map(({ name }) => name)
    byId('adapters').replaceChildren(...kept.map((one) => row(one, names)))
    byId('mine').hidden = kept.length === 0
  }
  buttonOf('export').addEventListener('click', () => {
    void guarded('mine', 'The adapters cannot be saved', async () => {
      const names = (await keptAdapters()).map(({ name }) => name)
      download('adapters', await keptFiles(names))
    })
  })
  return list
}

/** Reads an adapter from an archive; its files may lie in a folder of it. */
export async function readArchive(file: File): Promise<LoraAdapter> {
  let entries: Record<string, Uint8Array>
  try {
    entries = unzipSync(new Uint8Array(await file.arrayBuffer()))
  } catch (cause) {
    throw new Error(`${file.name}: not a zip archive. Choose the file that this page saved, or open the folder.`, {
      cause,
    })
  }
  const config = Object.keys(entries).find((path) => /(^|\/)adapter_config\.json$/.test(path))
  if (config === undefined) throw new Error(`${file.name}: no adapter_config.json inside, so it is not an adapter.`)
  const prefix = config.slice(0, -'adapter_config.json'.length)
  const files = Object.entries(entries)
    .filter(([path]) => path.startsWith(prefix) && !path.endsWith('/'))
    .map(([path, bytes]) => [path.slice(prefix.length), bytes])
  return loadAdapter(new MemoryDirectory(Object.fromEntries(files), file.name))
}
