import { readFileSync } from 'node:fs'
import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { MemoryDirectory } from '../../src/base/bytes.js'
import { parseChat } from '../../src/text/chat.js'
import { markChat } from '../../src/text/chat-encode.js'
import { loadChatTemplate } from '../../src/text/chat-template.js'
import type { ChatTemplate } from '../../src/text/template.js'
import { goldenPath } from '../golden.js'

const tokens = { 'tokenizer_config.json': '{"bos_token": "<s>", "eos_token": "</s>"}' }
const template = async (text: string) => (await loadChatTemplate(new MemoryDirectory(tokens), text)) as ChatTemplate
const golden = (name: string) => template(readFileSync(goldenPath('chat', 'templates', `${name}.jinja`), 'utf8'))
/** The same template, rendered for each answer. */
const slow = (one: ChatTemplate): ChatTemplate => ({ ...one, renderTurns: () => undefined })

const LOOP = '{% for m in messages %}<{{ m.role }}>{{ m.content }}</>{% endfor %}'
const ASK = '{% if add_generation_prompt %}<assistant>{% endif %}'
const chat = [
  { role: 'system', content: 's' },
  { role: 'user', content: 'one' },
  { role: 'assistant', content: 'two' },
  { role: 'user', content: 'three' },
  { role: 'assistant', content: 'four' },
]
const isTurnwise = async (text: string) => (await template(text)).renderTurns(chat, {}, 'x') !== undefined

describe('templates that write message after message', () => {
  it.each([
    LOOP + ASK,
    LOOP,
    `{# a head #}{{ bos_token }}{% if messages[0].role != 'system' %}default{% endif %}${LOOP}${ASK}`,
    `{% set all = messages %}{% for m in all %}{% set text = m.content | trim %}{{ text }}{{ loop.index0 }}{% endfor %}${ASK}`,
    `{% for m in messages %}{% if loop.first %}first{% endif %}{{ m.content }}{% for c in m.tool_calls or [] %}{{ c }}{% endfor %}{% endfor %}`,
  ])('are told: %s', async (text) => expect(await isTurnwise(text)).toBe(true))

  it.each([
    '{% for m in messages %}{{ m.content }}{% if loop.last %}!{% endif %}{% endfor %}',
    '{% for m in messages %}{{ m.content }}{{ loop }}{% endfor %}',
    '{% for m in messages %}{{ m.content }}{{ messages[loop.index0 - 1].role }}{% endfor %}',
    '{% for m in messages[1:] %}{{ m.content }}{% endfor %}',
    '{% for m in messages if m.role == "user" %}{{ m.content }}{% endfor %}',
    '{% for m in messages %}{% if m.role == "system" %}{% continue %}{% endif %}{{ m.content }}{% endfor %}',
    `{{ messages | length }}${LOOP}${ASK}`,
    `{{ messages[-1].content }}${LOOP}${ASK}`,
    `${ASK}${LOOP}`,
    `{% for m in messages %}{{ m.content }}{{ add_generation_prompt }}{% endfor %}`,
    `${LOOP}{% if add_generation_prompt %}<assistant>{% else %}</s>{% endif %}`,
    `${LOOP}</s>`,
    `{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{{ m.content }}{% endfor %}{% if add_generation_prompt %}{{ ns.n }}{% endif %}`,
    `{% set messages = messages[1:] %}${LOOP}`,
    'no loop',
  ])('are told from others: %s', async (text) => expect(await isTurnwise(text)).toBe(false))

  it('leaves messages that hold the mark to the other way', async () => {
    const marked = [{ role: 'user', content: '\ufdd2' }]
    expect((await template(LOOP)).renderTurns(marked, {}, 'x')).toBeUndefined()
  })
})

describe('one rendering tells what one for each answer tells', () => {
  const { cases, texts } = JSON.parse(readFileSync(goldenPath('chat', 'expected.json'), 'utf8'))

  it('in the templates of models', async () => {
    const turnwise: string[] = []
    for (const name of Object.keys(texts)) {
      const quick = await golden(name)
      if (quick.renderTurns(chat.slice(1), {}, 'x') !== undefined) turnwise.push(name)
      for (const [key, record] of Object.entries<{ messages: object[]; args?: object }>(cases)) {
        const parsed = parseChat({ ...record }, key)
        const mark = (one: ChatTemplate) => {
          try {
            return markChat(parsed, { template: one, args: { ...record.args, date_string: 'x' } }, key)
          } catch (error) {
            return (error as Error).message
          }
        }
        expect([name, key, mark(quick)]).toEqual([name, key, mark(slow(quick))])
      }
    }
    expect(turnwise).toEqual(['llama3', 'smollm3'])
  })

  it('for any messages', async () => {
    const quick = await template(
      "{% if messages[0].role != 'system' %}default{% endif %}{% for m in messages %}<{{ m.role }}>{{ m.content | trim }}</>\n{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}",
    )
    const text = fc.string({ unit: fc.constantFrom('<assistant>', '</>', '\n', ' ', 'a', '🐋'), maxLength: 5 })
    const turns = fc.array(fc.tuple(text, text), { minLength: 1, maxLength: 4 })
    await fc.assert(
      fc.asyncProperty(fc.option(text), turns, async (system, pairs) => {
        const scene = system === null ? [] : [{ role: 'system', content: system }]
        const messages = pairs.flatMap(([asked, answer]) => [
          { role: 'user', content: asked },
          { role: 'assistant', content: answer },
        ])
        const parsed = parseChat({ messages: [...scene, ...messages] }, 'x')
        expect(markChat(parsed, { template: quick }, 'x')).toEqual(markChat(parsed, { template: slow(quick) }, 'x'))
      }),
    )
  })
})
