// The tokenizer of a merged model. It comes from the adapter if its tokenizer has further tokens, as TRL, LLaMA-Factory
// and axolotl save it.

import { expect, it } from 'vitest'
import { MemoryDirectory, saveAdapter } from '../../src/api/node.js'
import { adapter, base, mergeCheckpoint } from './toolkit.js'

const TEMPLATE = '{% for m in messages %}<|im_start|>{{ m.role }}{{ m.content }}<|im_end|>{% endfor %}'

function tokenizer(added: readonly string[], settings = {}): string {
  const vocab = { a: 0, b: 1 }
  return JSON.stringify({
    added_tokens: added.map((content, i) => ({ id: 2 + i, content })),
    model: { vocab },
    ...settings,
  })
}

async function merged(baseFiles: Record<string, string>, ...adapters: Record<string, string>[]) {
  const from = await base(
    [
      ['model.embed_tokens.weight', 'fp32', [6, 16]],
      ['model.layers.0.self_attn.q_proj.weight', 'fp32', [16, 16]],
    ],
    { files: baseFiles, config: { model_type: 'llama', tie_word_embeddings: true } },
  )
  const folders = []
  for (const files of adapters) {
    const folder = new MemoryDirectory(files, 'adapter')
    await saveAdapter(adapter({ 'model.layers.0.self_attn.q_proj': [16, 16] }), folder)
    for (const [name, text] of Object.entries(files)) folder.files.set(name, new TextEncoder().encode(text))
    folders.push(folder)
  }
  const out = new MemoryDirectory({}, 'out')
  const report = await mergeCheckpoint(from, folders, out)
  const text = (name: string) => new TextDecoder().decode(out.files.get(name))
  return { ...report, out, text }
}

const CHAT = ['<|im_start|>', '<|im_end|>']

it('goes along with its chat template, and none of the base’s files stays beside it', async () => {
  const own = { 'tokenizer.json': tokenizer(CHAT), 'tokenizer_config.json': '{"eos_token":"<|im_end|>"}' }
  const files = { 'tokenizer.json': tokenizer([]), 'vocab.json': '{}', 'special_tokens_map.json': '{}' }
  const { out, text, warnings, copied } = await merged(files, { ...own, 'chat_template.jinja': TEMPLATE })
  expect(text('tokenizer.json')).toBe(own['tokenizer.json'])
  expect(text('chat_template.jinja')).toBe(TEMPLATE)
  // transformers.js reads the chat template only from tokenizer_config.json.
  const config = { ...JSON.parse(own['tokenizer_config.json']), chat_template: TEMPLATE }
  expect(JSON.parse(text('tokenizer_config.json'))).toEqual(config)
  expect([...out.files.keys()]).not.toContain('vocab.json')
  expect(copied).toContain('tokenizer.json')
  expect(warnings).toEqual([expect.stringMatching(/tokenizer is the adapter's/)])
})

it('goes along where only the token at the end of texts is another one', async () => {
  const config = (eos: string) => JSON.stringify({ eos_token: { content: eos } })
  const both = { 'tokenizer.json': tokenizer(CHAT) }
  const { text } = await merged(
    { ...both, 'tokenizer_config.json': config('b') },
    { ...both, 'tokenizer_config.json': config('<|im_end|>') },
  )
  expect(text('tokenizer_config.json')).toBe(config('<|im_end|>'))
})

it('stays the base’s where the tokens are the same, whatever padding the training has set', async () => {
  const files = { 'tokenizer.json': tokenizer(CHAT) }
  const { text, warnings } = await merged(files, {
    'tokenizer.json': tokenizer(CHAT, { truncation: { max_length: 8 } }),
  })
  expect(text('tokenizer.json')).toBe(files['tokenizer.json'])
  expect(warnings).toEqual([])
})

it('is told to be missing where the adapter has only a template with tokens of its own', async () => {
  const { warnings } = await merged({ 'tokenizer.json': tokenizer([]) }, { 'chat_template.jinja': TEMPLATE })
  expect(warnings).toEqual([expect.stringMatching(/<\|im_start\|>, <\|im_end\|>, which the tokenizer has not/)])
})

it('is told where the embedding has no rows for its tokens', async () => {
  const { warnings } = await merged(
    { 'tokenizer.json': tokenizer([]) },
    { 'tokenizer.json': tokenizer([...CHAT, 'x', 'y', 'z']) },
  )
  expect(warnings).toContainEqual(expect.stringMatching(/up to number 6, but the embedding has 6 rows/))
})

it('stays the base’s where two adapters have different ones', async () => {
  const files = { 'tokenizer.json': tokenizer([]) }
  const { text, warnings } = await merged(
    files,
    { 'tokenizer.json': tokenizer(['x']) },
    { 'tokenizer.json': tokenizer(['y']) },
  )
  expect(text('tokenizer.json')).toBe(files['tokenizer.json'])
  expect(warnings).toContainEqual(expect.stringMatching(/different tokenizers/))
})
