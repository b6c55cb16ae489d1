// Files that texts pass through: tokenizer.json, chat templates, and data files.

import { MemorySource } from '../../../dist/core/base/bytes.js'
import { readRows } from '../../../dist/files/data/read-rows.js'
import { parseJson, toPlain } from '../../../dist/files/json.js'
import { compileChatTemplate } from '../../../dist/model/text/compiled-template.js'
import { makeTokenizer } from '../../../dist/model/text/tokenizer.js'
import { filesLike, read } from '../inputs.mjs'
import { mutateBytes, mutateJson, mutateText } from '../mutate.mjs'

const MESSAGES = [
  { role: 'system', content: 'Be short.' },
  { role: 'user', content: 'What is 1 + 1?' },
  { role: 'assistant', content: '2' },
]
const SPECIAL_TOKENS = { bos_token: '<s>', eos_token: '</s>' }

const data = (name, seeds, mutate) => ({
  name,
  seeds,
  make: read,
  mutate,
  async check(bytes, path) {
    let count = 0
    for await (const _ of readRows(new MemorySource(bytes, path))) if (++count === 100_000) break
  },
})

export const targets = [
  {
    name: 'tokenizer',
    seeds: () => ['tests/golden/models/llama-genai/tokenizer.json', 'tests/golden/chat/sentencepiece.json'],
    make: read,
    mutate: mutateJson,
    check(bytes) {
      const tokenizer = makeTokenizer(toPlain(parseJson(bytes, 'tokenizer.json')), {}, 'input')
      for (const text of ['Whales are big.', ' é\n\t💥 ', '']) tokenizer.decode(tokenizer.encode(text))
      tokenizer.encodePair('one ', 'two')
    },
  },
  {
    name: 'chat-template',
    seeds: () => filesLike(/\.jinja$/),
    make: read,
    mutate: mutateText,
    async check(bytes) {
      const texts = new Map([['default', bytes.toString()]])
      const template = await compileChatTemplate({ name: 'input', texts, specialTokens: SPECIAL_TOKENS })
      template.render(MESSAGES, { addGenerationPrompt: true }, 'line 1')
    },
  },
  data('data-delimited', () => filesLike(/^data\/.*\.[ct]sv$/), mutateText),
  data('data-jsonl', () => ['models/data/chats.jsonl', 'models/data/scripture.eval.jsonl'], mutateText),
  data('data-parquet', () => filesLike(/^data\/.*\.parquet$/), mutateBytes),
]
