// The names of files in an adapter's folder, and its chat_template.jinja, which is where transformers and TRL keep it.

import { type Directory, readText, writeFile } from '../../core/base/bytes.js'

export const CONFIG_FILE = 'adapter_config.json'
export const CARD_FILE = 'README.md'
export const TEMPLATE_FILE = 'chat_template.jinja'
/** The marker of a folder that lowrank's training wrote. */
export const MARKER_FILE = 'lowrank.json'

export async function readChatTemplate(directory: Directory, path: string): Promise<string | undefined> {
  if (!(await directory.has(path + TEMPLATE_FILE))) return undefined
  return readText(directory, path + TEMPLATE_FILE)
}

export async function writeChatTemplate(directory: Directory, template: string | undefined): Promise<void> {
  const isThere = await directory.has(TEMPLATE_FILE)
  if (template === undefined) {
    if (isThere && (await directory.has(CONFIG_FILE))) await directory.remove(TEMPLATE_FILE)
    return
  }
  if (isThere && (await readChatTemplate(directory, '')) === template) return
  await writeFile(directory, TEMPLATE_FILE, template)
}
