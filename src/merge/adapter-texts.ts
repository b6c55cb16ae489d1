// The texts of a result that are the adapters': their chat template and their tokenizer, which they were trained with.

import type { Directory } from '../base/bytes.js'
import { readChatTemplate } from '../peft/chat-template.js'
import { TEMPLATE_FILE } from '../peft/file-names.js'
import { type OtherFile, textFile } from './companions.js'
import type { MergeAdapter } from './weighted.js'

/** The files that adapters give a result. */
export interface AdapterTexts {
  /** Take the place of the base's files, or are new. */
  readonly files: readonly OtherFile[]
  readonly warnings: readonly string[]
}

/** @param base its folder */
export async function adapterTexts(base: Directory, adapters: readonly MergeAdapter[]): Promise<AdapterTexts> {
  const found = new Set<string>()
  for (const adapter of adapters) {
    const template = 'chatTemplate' in adapter ? adapter.chatTemplate : await readChatTemplate(adapter as Directory, '')
    if (template !== undefined) found.add(template)
  }
  const own = await readChatTemplate(base, '')
  const [template, ...others] = found
  if (template === undefined || (others.length === 0 && template === own)) return { files: [], warnings: [] }
  if (others.length > 0) {
    const left = own === undefined ? 'the result gets none' : 'the result keeps that of the base'
    return { files: [], warnings: [`the adapters have different chat templates: ${left}`] }
  }
  const replaced = `${TEMPLATE_FILE} is the adapter's: it was trained with another chat template than the base's`
  return { files: [textFile(TEMPLATE_FILE, template)], warnings: own === undefined ? [] : [replaced] }
}
