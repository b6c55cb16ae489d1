// The changes of a base's config.json: what the merge has made of its types and of tied embeddings. All else keeps its spelling.

import type { FloatDtype } from '../../base/dtype.js'
import { FormatError } from '../../base/errors.js'
import { setMember } from '../../formats/json-edit.js'
import type { ConfigEdit } from './plan.js'

export const CONFIG_FILE = 'config.json'

const TORCH_NAMES: Readonly<Record<FloatDtype, string>> = { F32: 'float32', F16: 'float16', BF16: 'bfloat16' }

const DTYPE_NAMES = ['dtype', 'torch_dtype'] as const

/** The model's and, where that is a part of it, the language model's, with the way to each. */
function partsOf(config: Readonly<Record<string, unknown>>): { part: Record<string, unknown>; path: string[] }[] {
  const text = config.text_config
  const isPart = typeof text === 'object' && text !== null && !Array.isArray(text)
  return [
    { part: config, path: [] },
    ...(isPart ? [{ part: text as Record<string, unknown>, path: ['text_config'] }] : []),
  ]
}

/** A dtype that config.json has and that is not this one. */
export function otherDtype(config: Readonly<Record<string, unknown>>, dtype: FloatDtype): string | undefined {
  const said = partsOf(config).flatMap(({ part }) => DTYPE_NAMES.flatMap((name) => part[name] ?? []))
  return said.map(String).find((name) => name !== TORCH_NAMES[dtype])
}

/** config.json with tie_word_embeddings and the dtype as the merge has made them; all else stays. */
export function editConfig(content: Uint8Array, { isUntied, dtype }: ConfigEdit, where: string): string {
  let text = new TextDecoder().decode(content)
  let config: Record<string, unknown>
  try {
    config = JSON.parse(text)
  } catch (cause) {
    throw new FormatError({ where, what: 'not valid JSON', cause })
  }
  const parts = partsOf(config)
  if (isUntied) {
    const holder = parts.findLast(({ part }) => 'tie_word_embeddings' in part)
    text = setMember(text, [...(holder?.path ?? []), 'tie_word_embeddings'], false)
    if (config.tie_word_embeddings === true) text = setMember(text, ['tie_word_embeddings'], false)
  }
  if (dtype !== undefined) {
    for (const { part, path } of parts) {
      for (const name of DTYPE_NAMES) if (name in part) text = setMember(text, [...path, name], TORCH_NAMES[dtype])
    }
    if (!DTYPE_NAMES.some((name) => name in config)) text = setMember(text, ['torch_dtype'], TORCH_NAMES[dtype])
  }
  return text
}
