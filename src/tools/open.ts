// Adapters that are walked part by part: in memory, or in a folder whose tensors are read when their turn comes, so that memory does
// not grow with the number of adapters.

import type { Directory } from '../base/bytes.js'
import { type AdapterPart, LoraAdapter } from '../lora/adapter.js'
import type { LoraConfig } from '../lora/config.js'
import type { PartView } from '../lora/part.js'
import { requireUnchangedBase } from '../lora/requirements.js'
import { openAdapter, readAdapterPart } from '../peft/adapter-folder.js'

/** An adapter, of which one part at a time is in memory. */
export interface OpenedAdapter {
  /** For messages. */
  readonly name: string
  readonly config: LoraConfig
  parts(): readonly PartView[]
  /** Throws NumericError when a value is not finite. */
  read(name: string): Promise<AdapterPart>
  close(): Promise<void>
}

/**
 * Opens an adapter.
 *
 * @param use what would be done with it, for the message that refuses an adapter whose start changed the base
 * @throws UnsupportedError for such an adapter; what {@link openAdapter} throws
 */
export async function openParts(adapter: LoraAdapter | Directory, use: string): Promise<OpenedAdapter> {
  const opened = adapter instanceof LoraAdapter ? inMemory(adapter) : await inFolder(adapter)
  try {
    requireUnchangedBase(opened, use)
    return opened
  } catch (error) {
    await opened.close()
    throw error
  }
}

function inMemory(adapter: LoraAdapter): OpenedAdapter {
  return {
    name: 'adapter',
    config: adapter.config,
    parts: () => adapter.parts() as unknown as PartView[],
    read: async (name) => adapter.get(name)!,
    close: async () => {},
  }
}

async function inFolder(directory: Directory): Promise<OpenedAdapter> {
  const file = await openAdapter(directory)
  const byName = new Map(file.parts().map((part) => [part.name, part]))
  return {
    name: directory.name,
    config: file.config,
    parts: () => file.parts(),
    read: (name) => readAdapterPart(file, byName.get(name)!),
    close: () => file.close(),
  }
}
