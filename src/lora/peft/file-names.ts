// The names of files in an adapter's folder, its chat_template.jinja, which is where transformers and TRL keep it, and
// the prompts of its texts, which sentence-transformers keeps in config_sentence_transformers.json.

import { type Directory, readJsonIfThere, readText, writeFile } from '../../core/base/bytes.js'
import { objectOf } from '../../core/base/options.js'

export const CONFIG_FILE = 'adapter_config.json'
export const CARD_FILE = 'README.md'
export const TEMPLATE_FILE = 'chat_template.jinja'
export const PROMPTS_FILE = 'config_sentence_transformers.json'
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

/** Prompts by name, such as `query` and `document`. */
export type NamedPrompts = Readonly<Record<string, string>>

export async function readNamedPrompts(directory: Directory, path: string): Promise<NamedPrompts | undefined> {
  const { prompts } = objectOf(await readJsonIfThere(directory, path + PROMPTS_FILE))
  const texts = Object.entries(objectOf(prompts)).filter(([, prompt]) => typeof prompt === 'string')
  return texts.length === 0 ? undefined : (Object.fromEntries(texts) as NamedPrompts)
}

export async function writeNamedPrompts(directory: Directory, prompts: NamedPrompts | undefined): Promise<void> {
  if (prompts !== undefined) return writeFile(directory, PROMPTS_FILE, `${JSON.stringify({ prompts }, undefined, 2)}\n`)
  const isThere = (await directory.has(PROMPTS_FILE)) && (await directory.has(CONFIG_FILE))
  if (isThere) await directory.remove(PROMPTS_FILE)
}
