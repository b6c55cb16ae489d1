// Lists the spelling of each token, for libraries that match texts token by token.

import { isObject } from '../../core/base/options.js'

/** A model's tokens, indexed by id. */
export interface Vocabulary {
  /** `byte_level`: each byte is one of GPT-2's letters. `byte_fallback`: ▁ is a space, <0x0A> a byte. */
  readonly spelling: 'byte_level' | 'byte_fallback'
  /** The spelling of each token; empty for special tokens and for unused ids. */
  readonly tokens: readonly string[]
}

/** GPT-2's letter for each byte: bytes that cannot be printed get the letters from U+0100 on, in their order. */
export const BYTE_LETTERS: readonly string[] = (() => {
  let next = 0x100
  return Array.from({ length: 256 }, (_, byte) => {
    const isPrinted = (byte > 0x20 && byte < 0x7f) || (byte > 0xa0 && byte !== 0xad)
    return String.fromCharCode(isPrinted ? byte : next++)
  })
})()

export function vocabularyOf(definition: Readonly<Record<string, unknown>>, size: number): Vocabulary | undefined {
  const { model, decoder, added_tokens: added } = definition
  const { vocab } = model as { vocab: Readonly<Record<string, number>> | readonly (readonly [string, number])[] }
  const steps = JSON.stringify(decoder ?? null)
  const isByteLevel = steps.includes('"ByteLevel"')
  if (!isByteLevel && !/"(ByteFallback|Metaspace)"|▁/.test(steps)) return undefined
  const pairs = Array.isArray(vocab)
    ? vocab.map(([token]: [string], id: number) => [token, id] as const)
    : Object.entries(vocab as Readonly<Record<string, number>>)
  const tokens = new Array<string>(size).fill('')
  for (const [token, id] of pairs) if (id < size) tokens[id] = token
  for (const token of added as readonly unknown[]) if (isObject(token)) tokens[token.id as number] = ''
  return { spelling: isByteLevel ? 'byte_level' : 'byte_fallback', tokens: tokens.slice(0, size) }
}
