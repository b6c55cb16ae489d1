// Makes tests/golden/ollama.json: chat templates in Go's language, and chats as Go renders them. Needs Go and the
// build. Usage: node scripts/golden/ollama.mjs

import { execFileSync } from 'node:child_process'
import { readFileSync, writeFileSync } from 'node:fs'
import { goTemplate, turnShape } from '../../dist/merge/exchange/ollama/ollama.js'
import { compileChatTemplate } from '../../dist/model/text/compiled-template.js'

const published = (name) => readFileSync(`tests/golden/chat/templates/${name}.jinja`, 'utf8')
const TEMPLATES = {
  llama3: { jinja: published('llama3'), bos: '<|begin_of_text|>', eos: '<|eot_id|>' },
  'qwen2.5': { jinja: published('qwen2_5'), bos: '', eos: '<|im_end|>' },
  qwen3: { jinja: published('qwen3'), bos: '', eos: '<|im_end|>' },
  gemma3: { jinja: published('gemma3'), bos: '<bos>', eos: '<eos>' },
  // Mistral-7B-Instruct-v0.1 and v0.2, from the time before they accepted system messages.
  'mistral-v0.1': {
    jinja:
      "{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token}}{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}",
    bos: '<s>',
    eos: '</s>',
  },
  // Mistral-7B-Instruct-v0.3 without its tools: the system message is put before the last question.
  'mistral-v0.3': {
    jinja:
      '{%- if messages[0]["role"] == "system" %}\n    {%- set system_message = messages[0]["content"] %}\n    {%- set loop_messages = messages[1:] %}\n{%- else %}\n    {%- set loop_messages = messages %}\n{%- endif %}\n{{- bos_token }}\n{%- for message in loop_messages %}\n    {%- if message["role"] == "user" %}\n        {%- if loop.last and system_message is defined %}\n            {{- "[INST] " + system_message + "\\n\\n" + message["content"] + "[/INST]" }}\n        {%- else %}\n            {{- "[INST] " + message["content"] + "[/INST]" }}\n        {%- endif %}\n    {%- elif message["role"] == "assistant" %}\n        {{- " " + message["content"]|trim + eos_token}}\n    {%- else %}\n        {{- raise_exception("Only user and assistant roles are supported") }}\n    {%- endif %}\n{%- endfor %}\n',
    bos: '<s>',
    eos: '</s>',
  },
  smollm2: {
    jinja:
      "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
    bos: '<|im_start|>',
    eos: '<|im_end|>',
  },
}
const user = (content) => ({ role: 'user', content })
const assistant = (content) => ({ role: 'assistant', content })
const CHATS = [
  [user('Who is the captain?')],
  [user('Who is it?'), assistant('Ahab, “captain” of the ship.'), user('{{ And }} <now>?\n1 & 2')],
  [{ role: 'system', content: 'Answer "shortly".' }, user('Where?'), assistant('At sea.'), user('When?')],
]

const cases = []
for (const [name, { jinja, bos, eos }] of Object.entries(TEMPLATES)) {
  const specialTokens = { bos_token: bos, eos_token: eos }
  const template = await compileChatTemplate({ name, texts: new Map([['default', jinja]]), specialTokens })
  const shape = turnShape(template, name === 'smollm2' ? '' : bos)
  const chats = shape.system === undefined ? CHATS.slice(0, 2) : CHATS
  cases.push({ name, jinja, bos: name === 'smollm2' ? '' : bos, specialTokens, template: goTemplate(shape), chats })
}
const input = JSON.stringify(cases.map(({ template, chats }) => ({ template, chats })))
const texts = JSON.parse(execFileSync('go', ['run', 'scripts/golden/ollama.go'], { input, encoding: 'utf8' }))
const golden = cases.map((entry, i) => ({ ...entry, texts: texts[i] }))
writeFileSync('tests/golden/ollama.json', `${JSON.stringify(golden, null, 1)}\n`)
