import { readFileSync } from 'node:fs'
import { describe, expect, it } from 'vitest'
import type { Tokenizer } from '../../../src/api/node.js'
import { parseChat } from '../../../src/model/text/chat.js'
import { answerTexts } from '../../../src/model/text/chat-encode.js'
import { compileChatTemplate } from '../../../src/model/text/compiled-template.js'
import type { PlainTemplate, RenderOptions } from '../../../src/model/text/template.js'
import { makeTokenizer } from '../../../src/model/text/tokenizer.js'
import { goldenPath } from '../../golden.js'

interface Case {
  messages: object[]
  tools?: object[]
  args?: Record<string, unknown>
}
interface Expected {
  cases: Record<string, Case>
  special: string[]
  borders: string
  texts: Record<string, Record<string, { text: string | null; prompt: string | null }>>
  masks: Record<string, Record<string, Record<string, { ids: number[]; mask: string }>>>
}

const json = (...path: string[]) => JSON.parse(readFileSync(goldenPath('chat', ...path), 'utf8'))
const expected: Expected = json('expected.json')
const DATE = { date_string: '26 Jul 2024' }

async function templateOf(name: string, tokens: Record<string, string>): Promise<PlainTemplate> {
  const text =
    name === 'borders' ? expected.borders : readFileSync(goldenPath('chat', 'templates', `${name}.jinja`), 'utf8')
  return compileChatTemplate({ name, texts: new Map([['default', text]]), specialTokens: tokens })
}

/** Adds the templates' special tokens to a tokenizer definition. */
function withSpecial(definition: { model: { vocab: object }; added_tokens: object[] }, name: string): Tokenizer {
  const first = Object.keys(definition.model.vocab).length
  const added = expected.special.map((content, i) => ({ id: first + i, content, special: true, normalized: false }))
  return makeTokenizer({ ...definition, added_tokens: [...definition.added_tokens, ...added] }, {}, name)
}

const UNION_TOKENS = { bos_token: '<|bos|>', eos_token: '<|eos|>', pad_token: '<|pad|>' }

describe('rendered chats equal those of transformers', () => {
  it('for twelve templates', () => expect(Object.keys(expected.texts)).toHaveLength(12))

  it.each(Object.keys(expected.texts))('%s', async (name) => {
    const template = await templateOf(name, UNION_TOKENS)
    const render = (record: Case, end: number, options: RenderOptions) => {
      try {
        const chat = parseChat({ ...record }, name)
        const args = { ...DATE, ...record.args }
        return template.render(chat.messages.slice(0, end), { ...options, tools: chat.tools, args }, name).text
      } catch (error) {
        expect((error as Error).message).toContain('chat template does not take this chat')
        return null
      }
    }
    for (const [key, record] of Object.entries(expected.cases)) {
      const count = record.messages.length
      const { text, prompt } = expected.texts[name][key]
      expect([key, render(record, count, {})]).toEqual([key, text])
      expect([key, render(record, count - 1, { addGenerationPrompt: true })]).toEqual([key, prompt])
    }
  })
})

describe('token ids and counted tokens equal those of transformers', () => {
  const union = JSON.parse(readFileSync('models/union-3m/tokenizer.json', 'utf8'))
  const trimming = { ...union, post_processor: { type: 'ByteLevel', trim_offsets: true } }
  const composing = { ...union, normalizer: { type: 'NFC' } }
  const small = json('sentencepiece.json')
  /** The same tokenizer, through the code for tokenizers that do not split texts into pieces. */
  const whole = { ...small, model: { ...small.model, ignore_merges: true } }
  const kinds: [string, string, Tokenizer, object][] = [
    ['byte-level', 'byte-level', withSpecial(union, 'union'), UNION_TOKENS],
    ['byte-level, without leading spaces', 'trimming', withSpecial(trimming, 'union'), UNION_TOKENS],
    ['byte-level, composed', 'composing', withSpecial(composing, 'union'), UNION_TOKENS],
    ['sentencepiece', 'sentencepiece', withSpecial(small, 'small'), { bos_token: '<s>', eos_token: '</s>' }],
    ['sentencepiece, whole', 'sentencepiece', withSpecial(whole, 'small'), { bos_token: '<s>', eos_token: '</s>' }],
  ]

  it.each(kinds)('%s', async (_, kind, tokenizer, tokens) => {
    for (const [name, cases] of Object.entries(expected.masks[kind])) {
      const template = await templateOf(name, tokens as Record<string, string>)
      expect(template.marksGeneration).toBe(true)
      for (const [key, { ids, mask }] of Object.entries(cases)) {
        const record = expected.cases[key]
        const chat = parseChat({ ...record }, key)
        const args = { ...DATE, ...record.args }
        const { text, generated } = template.render(chat.messages, { tools: chat.tools, args }, key)
        const encoded = tokenizer.encodeSpans(text, generated)
        const counted = new Array(ids.length).fill(0)
        for (const [first, end] of encoded.ranges) counted.fill(1, first, end)
        expect([name, key, encoded.ids]).toEqual([name, key, ids])
        expect([name, key, counted.join('')]).toEqual([name, key, mask])
      }
    }
  })
})

describe('what counts without marks is what TRL marks', () => {
  it.each(['gemma3', 'llama3', 'qwen3'])('%s', async (name) => {
    const [plain, marking] = await Promise.all([name, `${name}_training`].map((one) => templateOf(one, UNION_TOKENS)))
    expect(plain.marksGeneration).toBe(false)
    for (const [key, record] of Object.entries(expected.cases)) {
      // Gemma 3 takes no tools; Qwen 3's own template hides the thoughts of earlier turns, or adds an empty one.
      if (name === 'gemma3' && key === 'tools') continue
      if (name === 'qwen3' && ['turns', 'thinking', 'tools', 'args'].includes(key)) continue
      const chat = parseChat({ ...record }, key)
      const [byPrefix, byMark] = [plain, marking].map((template) =>
        answerTexts(chat, { template, args: record.args }, key).texts[0].mark(),
      )
      expect(byPrefix.text).toBe(byMark.text)
      expect([key, ...byPrefix.spans]).toEqual([key, ...byMark.spans])
    }
  })
})
