// Checkpoints and adapters of the tests on disk.

import { mkdir, readdir, readFile, writeFile } from 'node:fs/promises'
import path from 'node:path'
import { MemoryDirectory } from '../../../src/base/bytes.js'
import { saveAdapter } from '../../../src/lora/peft.js'
import { adapter, type BaseOptions, base, type TensorSketch } from './toolkit.js'

export async function toDisk(directory: MemoryDirectory, folder: string): Promise<string> {
  for (const [name, bytes] of directory.files) {
    const target = path.join(folder, name)
    await mkdir(path.dirname(target), { recursive: true })
    await writeFile(target, bytes)
  }
  return folder
}

export async function fromDisk(folder: string): Promise<MemoryDirectory> {
  const directory = new MemoryDirectory({}, folder)
  for (const entry of await readdir(folder, { recursive: true, withFileTypes: true })) {
    if (!entry.isFile()) continue
    const file = path.join(entry.parentPath, entry.name)
    directory.files.set(path.relative(folder, file).replaceAll('\\', '/'), await readFile(file))
  }
  return directory
}

/** `base` and `adapter` below a folder; the adapter changes all weights named `*.proj.weight`. */
export async function layOutFiles(folder: string, sketches: readonly TensorSketch[], options: BaseOptions = {}) {
  const from = await base(sketches, options)
  const layers = sketches.flatMap(([name, , [d, k]]) =>
    name.endsWith('proj.weight') ? [[name.slice(0, -'.weight'.length), [d, k]] as const] : [],
  )
  const lora = adapter(Object.fromEntries(layers))
  const loraFolder = new MemoryDirectory({}, 'adapter')
  await saveAdapter(lora, loraFolder)
  return {
    memory: from,
    lora,
    base: await toDisk(from, path.join(folder, 'base')),
    adapter: await toDisk(loraFolder, path.join(folder, 'adapter')),
    out: path.join(folder, 'out'),
  }
}
