// The chat template of a result: that of the adapters, which were trained with it.

import type { Directory } from '../../base/bytes.js'
import { readChatTemplate } from '../../peft/chat-template.js'
import { TEMPLATE_FILE } from '../../peft/file-names.js'
import type { AdapterInput } from '../weighted.js'

/** What the adapters say of a result's chat template. */
export interface ResultTemplate {
  /** Takes the place of the base's; undefined: the base's stays. */
  readonly template: string | undefined
  readonly warnings: readonly string[]
}

/** @param base undefined where the result is weights alone */
export async function resultTemplate(
  base: Directory | undefined,
  adapters: AdapterInput | readonly AdapterInput[],
): Promise<ResultTemplate> {
  if (base === undefined) return { template: undefined, warnings: [] }
  const found = new Set<string>()
  for (const input of [adapters].flat() as readonly AdapterInput[]) {
    const adapter = 'adapter' in input ? input.adapter : input
    const template = 'chatTemplate' in adapter ? adapter.chatTemplate : await readChatTemplate(adapter as Directory, '')
    if (template !== undefined) found.add(template)
  }
  const own = await readChatTemplate(base, '')
  const [template, ...others] = found
  if (template === undefined || (others.length === 0 && template === own)) return { template: undefined, warnings: [] }
  if (others.length > 0) {
    const left = own === undefined ? 'the result gets none' : 'the result keeps that of the base'
    return { template: undefined, warnings: [`the adapters have different chat templates: ${left}`] }
  }
  const replaced = `${TEMPLATE_FILE} is the adapter's: it was trained with another chat template than the base's`
  return { template, warnings: own === undefined ? [] : [replaced] }
}
