// Each field that a known format has changes what is learned, or an error names it: none is dropped silently.

import { describe, expect, it } from 'vitest'
import { parseRecord } from '../../../src/model/text/records.js'
import { promptOf } from '../../../src/train/loop/prompt-rows.js'
import { unreadNotes } from '../../../src/train/rows/facts.js'
import { loadTask, TASK_NAMES } from '../../../src/train/tasks/tasks.js'

const user = { role: 'user', content: 'u' }
const assistant = { role: 'assistant', content: 'a' }

const VALUES: Readonly<Record<string, unknown>> = {
  system: 'be kind',
  context: 'c',
  history: [['q0', 'a0']],
  weight: 0,
  train: false,
  tools: [{ type: 'function', function: { name: 'f' } }],
  functions: [{ name: 'f' }],
  function_call: { name: 'f', arguments: '{}' },
  chat_template_kwargs: { x: 1 },
}

const RECORDS: Readonly<Record<string, readonly object[]>> = {
  'causal-lm': [
    { text: 't' },
    { prompt: 'p', completion: 'c' },
    { prompt: [user], completion: [assistant] },
    { messages: [user, assistant] },
    { conversations: [user, assistant] },
    { instruction: 'i', output: 'o' },
    { question: 'q', answer: 'a' },
  ],
  dpo: [
    { prompt: 'p', chosen: 'c', rejected: 'r' },
    { prompt: [user], chosen: [assistant], rejected: [{ ...assistant, content: 'b' }] },
    { chosen: [user, assistant], rejected: [user, { ...assistant, content: 'b' }] },
    { input: { messages: [user] }, preferred_output: [assistant], non_preferred_output: [assistant] },
  ],
  kto: [
    { prompt: 'p', completion: 'c', label: true },
    { prompt: [user], completion: [assistant], label: false },
  ],
  seq2seq: [
    { text: 't', target: 's' },
    { instruction: 'i', input: 'x', output: 'o' },
  ],
}

const cases = Object.entries(RECORDS).flatMap(([name, records]) =>
  records.flatMap((record) => Object.keys(VALUES).map((field) => [name, JSON.stringify(record), field] as const)),
)

it.each(cases)('%s: %s with %s', async (name, text, field) => {
  const task = await loadTask(name)
  const record = JSON.parse(text)
  const plain = JSON.stringify(task.parse(record, 'x'))
  expect(unreadNotes(task, record)).toEqual([])
  expect(JSON.stringify(task.parse({ ...record, [field]: null }, 'x'))).toBe(plain)
  let parsed: unknown
  try {
    parsed = task.parse({ ...record, [field]: VALUES[field] }, 'x')
  } catch (error) {
    expect(error).toMatchObject({ name: 'DataError', message: expect.stringContaining(`"${field}"`) })
    return
  }
  expect(JSON.stringify(parsed)).not.toBe(plain)
})

describe('of a chat', () => {
  const read = (record: object) => {
    const parsed = parseRecord(record, 'x')
    return parsed.kind === 'chat' ? parsed.chat : undefined
  }

  it('puts system first, also before a prompt of messages', () => {
    const scene = { role: 'system', content: 's' }
    expect(read({ messages: [user, assistant], system: 's' })?.messages).toEqual([scene, user, assistant])
    expect(read({ messages: [scene, user, assistant], system: 's' })?.messages).toEqual([scene, user, assistant])
    expect(read({ prompt: [user], completion: [assistant], system: 's' })).toMatchObject({ learnFrom: 2 })
    expect(() => read({ messages: [scene, user, assistant], system: 'other' })).toThrow('"system" beside messages')
  })

  it("reads OpenAI's older calls as today's", () => {
    const call = { name: 'f', arguments: '{"x":1}' }
    const parsed = read({
      messages: [user, { role: 'assistant', content: null, function_call: call }],
      functions: [{ name: 'f' }],
    })
    const tool_calls = [{ type: 'function', function: call }]
    expect(parsed?.messages[1]).toEqual({ role: 'assistant', tool_calls })
    expect(parsed?.tools).toEqual([{ type: 'function', function: { name: 'f' } }])
  })

  it('makes turns of history, after the system message and before the question with its context', () => {
    const chat = read({ instruction: 'i', output: 'o', system: 's', context: 'c', history: [['q', 'a']] })
    expect(chat?.messages.map(({ content }) => content)).toEqual(['s', 'q', 'a', 'i\n\nc', 'o'])
    expect(parseRecord({ question: 'q', answer: 'a', context: 'c' }, 'x')).toMatchObject({ question: 'q\n\nc' })
  })

  it.each([
    [{ weight: 1, train: false }, 0],
    [{ weight: 0, train: true }, 0],
    [{ weight: 1, train: true }, 1],
  ])('learns a message with %j if both say so', (fields, weight) => {
    expect(read({ messages: [user, { ...assistant, ...fields }] })?.messages[1].weight ?? 1).toBe(weight)
  })

  it.each([{ train: 'no' }, { train_detail: [] }, { training: false }])('refuses a message with %j', (fields) => {
    expect(() => read({ messages: [user, { ...assistant, ...fields }] })).toThrow(`"${Object.keys(fields)[0]}"`)
  })
})

it.each([
  ['sentence', 'label', 1],
  ['review', 'sentiment', 'good'],
  ['headline', 'category', 'sea'],
])('leads a table of %s and %s to classification', (text, label, value) => {
  const columns = `columns: { text: '${text}', label: '${label}' }`
  expect(() => parseRecord({ id: 3, [text]: 'a', [label]: value }, 'x')).toThrow(columns)
})

it('names all other fields, for each task whose rewards do not read them', async () => {
  for (const task of await Promise.all(TASK_NAMES.map(loadTask))) {
    if (task.writesTexts) continue
    for (const record of task.records) {
      expect(unreadNotes(task, record), task.name).toEqual([])
      const [note, ...more] = unreadNotes(task, { ...record, page: 7, id: null })
      expect([note, more]).toEqual([`have a field "page", which the task ${task.name} does not read`, []])
    }
  }
})

it('puts system before a prompt to write for, and refuses it before a text', () => {
  expect(promptOf({ question: 'q', system: 's' }, 'x').messages?.map(({ content }) => content)).toEqual(['s', 'q'])
  expect(() => promptOf({ prompt: 'p', system: 's' }, 'x')).toThrow('"system"')
  expect(() => promptOf({ question: 'p', tools: VALUES.tools }, 'x')).toThrow('"tools"')
})
