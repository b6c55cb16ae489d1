// Adapters for Ollama: the template in Go's language gives the same text as the chat template. Go itself made the
// golden texts (scripts/golden/ollama.mjs).

import { readFileSync } from 'node:fs'
import { describe, expect, it } from 'vitest'
import { convertAdapter, MemoryDirectory } from '../../../src/api/node.js'
import { goTemplate, turnShape } from '../../../src/merge/exchange/ollama/ollama.js'
import { compileChatTemplate } from '../../../src/model/text/compiled-template.js'
import { goldenPath } from '../../golden.js'

interface Case {
  name: string
  jinja: string
  bos: string
  specialTokens: Record<string, string>
  template: string
  chats: { role: string; content: string }[][]
  texts: string[]
}
const golden: Case[] = JSON.parse(readFileSync(goldenPath('ollama.json'), 'utf8'))
const compile = (jinja: string, specialTokens = {}) =>
  compileChatTemplate({ name: 'template', texts: new Map([['default', jinja]]), specialTokens })

describe.each(golden)('$name', ({ jinja, bos, specialTokens, template, chats, texts }) => {
  it('is written in Go’s language as Go rendered it', async () => {
    expect(goTemplate(turnShape(await compile(jinja, specialTokens), bos))).toBe(template)
  })

  it('renders to the text of the chat template behind the first token', async () => {
    const own = await compile(jinja, specialTokens)
    for (const [i, chat] of chats.entries()) {
      expect(bos + texts[i]).toBe(own.render(chat, { addGenerationPrompt: true }, 'chat').text)
    }
  })
})

it.each([
  ['without turns', '{{ messages | length }} messages'],
  [
    'that shows earlier answers in another way',
    '{% for m in messages %}{{ m.role }}: {{ m.content if loop.last or m.role == "user" else "" }}\n{% endfor %}',
  ],
])('refuses a template %s', async (_, jinja) => {
  const template = await compile(jinja)
  expect(() => turnShape(template, '')).toThrow(/cannot be written in Go's language.*Convert to gguf/)
})

const ADDS = { type: 'TemplateProcessing', single: [{ SpecialToken: { id: '<|im_start|>', type_id: 0 } }] }
it.each([
  ['adds none', {}, null, true],
  ['adds it', {}, ADDS, false],
  ['adds it, but the config says no', { add_bos_token: false }, ADDS, true],
])('keeps the first token of SmolLM2 unless the tokenizer adds it: %s', async (_, settings, post_processor, isKept) => {
  const { jinja, template } = golden.find(({ name }) => name === 'smollm2')!
  const files = {
    'tokenizer_config.json': JSON.stringify({ bos_token: '<|im_start|>', ...settings }),
    'tokenizer.json': JSON.stringify({ post_processor }),
    'config.json': readFileSync('models/union-3m/config.json'),
    'chat_template.jinja': jinja,
  }
  const out = new MemoryDirectory({}, 'out')
  await convertAdapter(goldenPath('peft', 'f32'), {
    to: 'ollama',
    base: new MemoryDirectory(files, 'models/mine'),
    out,
  })
  const modelfile = new TextDecoder().decode(out.files.get('Modelfile'))
  expect(modelfile.includes(`TEMPLATE """${template}"""`)).toBe(isKept)
})

it('writes adapter.gguf and a Modelfile', async () => {
  const out = new MemoryDirectory({}, 'out')
  const files = {
    'tokenizer_config.json': '{"bos_token": "<|bos|>"}',
    'config.json': readFileSync('models/union-3m/config.json'),
  }
  const base = new MemoryDirectory(
    { ...files, 'chat_template.jinja': readFileSync('models/data/chat.jinja', 'utf8') },
    'models/mine',
  )
  const report = await convertAdapter(goldenPath('peft', 'f32'), { to: 'ollama', base, out })
  const modelfile = new TextDecoder().decode(out.files.get('Modelfile'))
  expect(modelfile).toMatch(
    /^FROM \.\/models\/mine\nADAPTER \.\/adapter\.gguf\nTEMPLATE """.+"""\nPARAMETER stop "<\|eos\|>"\n$/,
  )
  expect(new TextDecoder().decode(out.files.get('adapter.gguf')!.subarray(0, 4))).toBe('GGUF')
  expect(report).toMatchObject({ to: 'ollama', layers: 12 })
})
