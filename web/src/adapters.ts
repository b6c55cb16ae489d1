// Imports and exports adapters as zip archives of PEFT folders, and lists the adapters that this browser keeps.

import { unzipSync, zipSync } from 'fflate'
import { type LoraAdapter, loadAdapter, MemoryDirectory, saveAdapter } from 'lowrank'
import { button, buttonOf, byId, guarded, make, sizeOf } from './dom.js'
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

export function setUpKept(
  use: (adapter: KeptAdapter) => Promise<void>,
  showShare: (adapter: KeptAdapter) => Promise<void>,
): () => Promise<void> {
  const card = byId('share')
  const act = (label: string, work: () => Promise<unknown>) =>
    button(label, () => {
      void guarded('mine', 'My adapters', async () => {
        await work()
        await list()
      })
    })
  const row = (adapter: KeptAdapter, names: readonly string[]) => {
    const field = make('input', { value: adapter.name, maxlength: '40', 'aria-label': `Name of ${adapter.name}` })
    field.addEventListener('change', () => {
      void guarded('mine', 'The adapter cannot be renamed', async () => {
        const to = field.value.trim().replace(/[^\w.-]+/g, '-')
        const isTaken = names.includes(to)
        try {
          if (to === '' || isTaken)
            throw new Error(isTaken ? `There is ${to} already.` : 'A name has letters or digits.')
          await renameKept(adapter.name, to)
        } finally {
          await list()
        }
      })
    })
    const share = act('Share', () => showShare(adapter))
    share.setAttribute('aria-expanded', String(!card.hidden && card.dataset.of === adapter.name))
    const facts = `for ${adapter.modelName}, ${sizeOf(adapter.bytes)}`
    return make(
      'li',
      { class: 'row', 'data-kept': adapter.name },
      field,
      make('span', { class: 'state' }, facts),
      act('Use', () => use(adapter)),
      share,
      act('Download', async () => download(adapter.name, await keptFiles([adapter.name]))),
      act('Delete', () => removeKept(adapter.name)),
    )
  }
  const list = async () => {
    const kept = await keptAdapters()
    const names = kept.map(({ name }) => name)
    card.hidden ||= !names.includes(card.dataset.of ?? '')
    byId('export').hidden = names.length < 2
    byId('adapters').replaceChildren(...kept.map((adapter) => row(adapter, names)))
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

/**
 * Reads the adapters of an archive. Each has the name of its folder, or, without a folder, the name of the archive.
 *
 * @param most how many bytes it may have when it is unpacked
 */
export async function readArchive(file: File, most = Infinity): Promise<{ name: string; adapter: LoraAdapter }[]> {
  let entries: [path: string, bytes: Uint8Array][]
  let byteLength = 0
  // fflate unpacks no more of an entry than the archive announces.
  const filter = ({ originalSize }: { originalSize: number }) => {
    byteLength += originalSize
    return byteLength <= most
  }
  try {
    entries = Object.entries(unzipSync(new Uint8Array(await file.arrayBuffer()), { filter }))
  } catch (cause) {
    throw new Error(`${file.name}: not a zip archive. Choose the file that this page saved, or open the folder.`, {
      cause,
    })
  }
  if (byteLength > most) throw new Error(`${file.name}: it would unpack to ${byteLength} bytes, more than ${most}.`)
  const folders = entries.flatMap(([path]) => /^(.*\/|)adapter_config\.json$/.exec(path)?.[1] ?? [])
  if (folders.length === 0) throw new Error(`${file.name}: no adapter_config.json inside, so it is not an adapter.`)
  return Promise.all(
    folders.map(async (folder) => {
      const files = entries
        .filter(([path]) => path.startsWith(folder) && !path.endsWith('/'))
        .map(([path, bytes]) => [path.slice(folder.length), bytes])
      const name = folder.split('/').at(-2) ?? file.name.replace(/\.zip$/, '')
      return { name, adapter: await loadAdapter(new MemoryDirectory(Object.fromEntries(files), name)) }
    }),
  )
}
