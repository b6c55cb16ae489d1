// The forms of calls against published chat templates, rendered by Python's Jinja, and against vLLM's parsers.

import { readFileSync, writeFileSync } from 'node:fs'
import { describe, expect, it } from 'vitest'
import { MemoryDirectory } from '../../../src/api/node.js'
import type { FunctionCall } from '../../../src/model/text/calls/call.js'
import { CALL_FORMS, callFormOf, callsIn, readAnswer, writeCalls } from '../../../src/model/text/calls/forms.js'
import { loadChatTemplate } from '../../../src/model/text/chat-template.js'
import { goldenPath } from '../../golden.js'

interface Golden {
  tools: object[]
  calls: Record<string, FunctionCall[]>
  rows: {
    form: string
    template: string
    marks: string[]
    cases: Record<string, { answer?: string; refused?: string; vllm?: unknown }>
  }[]
  written: { form: string; same: string[]; others: Record<string, unknown>; texts: Record<string, string> }[]
}
const { tools, calls, rows, written }: Golden = JSON.parse(readFileSync(goldenPath('calls.json'), 'utf8'))
const formOf = (name: string) => CALL_FORMS.find((form) => form.name === name)!

/** Templates that do not show calls, or only the first. lowrank writes these calls into the content. */
const LOSING = ['HuggingFaceTB-SmolLM3-3B', 'LFM2.5-Instruct', 'ibm-granite-granite-3.3-2B-Instruct']

describe.each(rows)('$template', ({ form: name, template, marks, cases }) => {
  const form = formOf(name)
  it('is recognized', () => expect(callFormOf(marks.join('\n')).form.name).toBe(name))

  it.each(Object.entries(cases))('%s', (key, { answer, refused }) => {
    const isLost = LOSING.includes(template)
    if (refused !== undefined || (form.isSingle && calls[key].length > 1)) {
      expect(() => writeCalls(form, calls[key], tools, 'record 1')).toThrow(
        new RegExp(`record 1.*${name} has one call`, 's'),
      )
    } else expect(callsIn(readAnswer(form, answer!, tools).calls)).toEqual(isLost ? [] : calls[key])
  })
})

describe('what lowrank writes', () => {
  const texts = Object.fromEntries(
    CALL_FORMS.map((form) => [
      form.name,
      Object.fromEntries(
        Object.entries(calls)
          .filter(([, some]) => !form.isSingle || some.length === 1)
          .map(([key, some]) => [key, form.write(some)]),
      ),
    ]),
  )
  if (process.env.WRITE_CALLS) writeFileSync(process.env.WRITE_CALLS, JSON.stringify(texts))

  it.each(written)('vLLM reads $form', ({ form, same, others, texts: read }) => {
    expect(texts[form]).toEqual(read)
    expect([same.length > 0, Object.keys(others)]).toEqual([true, LOST_BY_VLLM[form] ?? []])
  })
})

/** What vLLM's parsers lose, and lowrank's do not: see call-forms.test.ts. */
const LOST_BY_VLLM: Record<string, string[]> = {
  'function-gemma': Object.keys(calls).filter((key) => key !== 'no arguments'),
  phi: ['all types', 'quotes', 'lines'],
}

describe('a template', () => {
  const load = async (text: string) => (await loadChatTemplate(new MemoryDirectory({}), text))!
  const SILENT = '{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}'
  const messages = [
    { role: 'user', content: 'Light' },
    { role: 'assistant', content: '', tool_calls: [{ type: 'function', function: calls.one[0] }] },
    { role: 'tool', content: 'ok' },
  ]

  it('that is silent about tools gets Hermes, and another form if it is named', async () => {
    const plain = await load(SILENT)
    expect(plain.calls.name).toBe('hermes')
    expect(plain.render(messages, { tools }, 'x').text).toContain(formOf('hermes').write(calls.one))
    const named = await load(`{# toolForm: function-gemma #}${SILENT}`)
    expect(named.calls.name).toBe('function-gemma')
    const { text } = named.render(messages, { tools }, 'x')
    expect(text).toMatch(
      /^<system>.*<tools>.*<assistant><start_function_call>call:set_lamp\{level:3,room:<escape>desk/s,
    )
  })

  it('that shows no calls gets them in the content, and results from the user', async () => {
    const { render } = await load(
      `{% if tools %}{{ tools | tojson }}<|tool_list_start|>{% endif %}{% for m in messages if m.role != 'tool' %}<{{ m.role }}>{{ m.content }}\n{% endfor %}`,
    )
    const { text } = render(messages, { tools }, 'x')
    expect(text).toContain('<assistant><|tool_call_start|>[set_lamp(room="desk", level=3)]<|tool_call_end|>')
    expect(text).toContain('<user><tool_response>\nok\n</tool_response>')
    expect(text).not.toContain('You are a function calling AI model')
  })

  it('of a form with one call an answer refuses several, by name', async () => {
    const { render } = await load(
      `${SILENT}{{ tools | tojson }}{# "parameters": dictionary #}{% for m in messages %}{{ m.tool_calls }}{% endfor %}`,
    )
    const tool_calls = calls.parallel.map((call) => ({ type: 'function', function: call }))
    expect(() => render([messages[0], { ...messages[1], tool_calls }], { tools }, 'record 7')).toThrow(
      /record 7, message 2.*the form of calls llama has one call an answer.*toolForm/s,
    )
  })
})
