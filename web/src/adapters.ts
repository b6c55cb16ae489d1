// Adapters in and out of the page: a PEFT folder as a zip archive.

import { unzipSync, zipSync } from 'fflate'
import { type LoraAdapter, loadAdapter, MemoryDirectory, saveAdapter } from 'lowrank'

/** Offers the adapter as a download. */
export async function downloadAdapter(name: string, adapter: LoraAdapter): Promise<void> {
  const folder = new MemoryDirectory()
  await saveAdapter(adapter, folder)
  const files = Object.fromEntries([...folder.files].map(([path, bytes]) => [`${name}/${path}`, bytes]))
  const url = URL.createObjectURL(new Blob([zipSync(files, { level: 0 })], { type: 'application/zip' }))
  const link = document.createElement('a')
  link.href = url
  link.download = `${name}.zip`
  link.click()
  setTimeout(() => URL.revokeObjectURL(url), 60_000)
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
