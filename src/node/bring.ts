// What merging by path reads from the disk, brought onto this machine from the Hub or a web server.

import path from 'node:path'
import type { Directory } from '../base/bytes.js'
import { FileError } from '../base/errors.js'
import { openCheckpoint } from '../formats/checkpoint.js'
import { HubDirectory } from '../io/hub/directory.js'
import type { Located } from '../io/locate.js'
import { NodeDirectory } from '../io/node/files.js'
import { bringFiles } from '../io/node/open-source.js'
import { isCompanion } from '../merge/plan/companions.js'
import { findAdapter } from '../peft/files.js'

/** Files beside a checkpoint that a merge of a base from elsewhere takes along: no pictures, and no other copy of the weights. */
const TEXTS = /(^|\/)(?!\.)[^/]*\.(json|jsonl|txt|md|model|jinja|py)$|(^|\/)(LICEN[CS]E|NOTICE)[^/]*$/

/**
 * The path of a checkpoint on this machine; what lies elsewhere comes first: its files, and those beside them.
 *
 * @throws FileError when one does not come
 */
export async function bringCheckpoint(source: string, { directory, file }: Located): Promise<string> {
  if (directory instanceof NodeDirectory) return source
  // This brings each shard, because it reads their headers.
  const checkpoint = await openCheckpoint(directory, file)
  await checkpoint.close()
  const files = checkpoint.shards.map(({ path: shard }) => shard)
  if (file === undefined || file.endsWith('.json')) {
    const all = directory instanceof HubDirectory ? directory.paths() : await directory.list()
    files.push(...all.filter((name) => TEXTS.test(name) && (isCompanion(name) || name === checkpoint.indexPath)))
  }
  return path.join(await bring(directory, files), file ?? '')
}

/** The path of an adapter's folder on this machine, with the files that PEFT writes. */
export async function bringAdapter(source: string, directory: Directory): Promise<string> {
  if (directory instanceof NodeDirectory) return source
  const { path: prefix } = await findAdapter(directory)
  const files: string[] = []
  for (const name of ['adapter_config.json', 'adapter_model.safetensors', 'adapter_model.bin']) {
    // PEFT reads the second where both are.
    const isTaken = name.endsWith('.bin') && files.some((file) => file.endsWith('.safetensors'))
    if (!isTaken && (await directory.has(prefix + name))) files.push(prefix + name)
  }
  return path.join(await bring(directory, files), prefix)
}

async function bring(directory: Directory, files: readonly string[]): Promise<string> {
  const folder = await bringFiles(directory, files)
  if (folder !== undefined) return folder
  throw new FileError({ where: directory.name, what: 'in no file system', hint: 'Write to a Directory too' })
}
