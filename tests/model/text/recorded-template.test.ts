import { describe, expect, it } from 'vitest'
import { recordTemplate } from '../../../src/model/text/chat-template.js'
import { compileChatTemplate } from '../../../src/model/text/compiled-template.js'

const render = async (text: string, args?: Record<string, unknown>) => {
  const template = await compileChatTemplate({ name: 'test', texts: new Map([['default', text]]), specialTokens: {} })
  return template.render([{ role: 'user', content: 'hi' }], { args }, 'test').text
}

describe('a recorded template', () => {
  it('without variables is the template itself', () => {
    expect(recordTemplate('{{ a }}')).toBe('{{ a }}')
  })

  it('gives what the template gives with its variables, which the caller can still set', async () => {
    const text =
      '\n{{ flag }}|{{ name }}|{{ nothing is none }}|{{ list[1] }}|{{ deep.a[0] }}|{{ count }}|{{ messages[0].content }}'
    const args = {
      flag: false,
      name: 'a "b"\n',
      nothing: null,
      'a-b': 1,
      list: [1, 'x'],
      deep: { a: [true] },
      count: -1.5,
    }
    const recorded = recordTemplate(text, args)
    expect(await render(recorded)).toBe(await render(text, args))
    expect(await render(recorded, { count: 7 })).toBe(await render(text, { ...args, count: 7 }))
  })
})
