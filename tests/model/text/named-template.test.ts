// A chat template without {{ and {% is a name of the model's templates, or an error: never its own text, nor a path.

import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, expect, it } from 'vitest'
import { readChatTemplate } from '../../../src/api/node/command-line.js'
import { MemoryDirectory } from '../../../src/core/base/bytes.js'
import { loadChatTemplate } from '../../../src/model/text/chat-template.js'

const scratch = mkdtempSync(join(tmpdir(), 'lowrank-template-'))
afterAll(() => rmSync(scratch, { recursive: true }))
const file = join(scratch, 'plain.txt')
writeFileSync(file, 'no template')

const model = new MemoryDirectory({
  'tokenizer_config.json': JSON.stringify({
    chat_template: [
      { name: 'default', template: '{{ 1 }}' },
      { name: 'tool_use', template: '{{ 2 }}' },
    ],
  }),
  'additional_chat_templates/rag.jinja': '{{ 3 }}',
})

it.each([
  ['tool_use', '{{ 2 }}'],
  ['rag', '{{ 3 }}'],
  ['{{ 4 }}', '{{ 4 }}'],
  ['{% if a %}{% endif %}', '{% if a %}{% endif %}'],
])('reads %s', async (given, text) => {
  expect((await loadChatTemplate(model, given))?.text).toBe(text)
})

it.each(['chatml', file, '../rag', '', 'tokenizer_config.json'])('refuses %j', async (given) => {
  await expect(loadChatTemplate(model, given)).rejects.toThrow(/^chatTemplate: neither a template.*tool_use, rag/s)
})

it('reads files and keeps names on the command line', async () => {
  expect(await readChatTemplate('tool_use')).toBe('tool_use')
  await expect(readChatTemplate(file)).rejects.toThrow('not a chat template')
  await expect(readChatTemplate(join(scratch, 'none.jinja'))).rejects.toThrow('none.jinja')
})
