// evaluate with measure: 'calls': requests of chats, measures of answers, and the models' own answers.

import { expect, it } from 'vitest'
import { evaluate } from '../../../src/api/node.js'
import { measureCalls, readRequests } from '../../../src/train/calls/evaluate-calls.js'
import { callRequests } from '../../../src/train/calls/requests.js'

const tool = (name: string, properties: object, required: string[] = []) => ({
  type: 'function',
  function: { name, parameters: { type: 'object', properties, required } },
})
const TOOLS = [
  tool('ring', { times: { type: 'integer', default: 1 } }),
  tool('sail', { to: { type: 'string' } }, ['to']),
]
const called = (...calls: [string, object][]) => ({
  role: 'assistant',
  content: '',
  tool_calls: calls.map(([name, args]) => ({ type: 'function', function: { name, arguments: JSON.stringify(args) } })),
})
const user = (content: string) => ({ role: 'user', content })
const said = (content: string) => ({ role: 'assistant', content })
const chat = (...messages: object[]) => ({ tools: TOOLS, messages })
const DATA = [
  chat(user('Ring it twice'), called(['ring', { times: 2 }]), { role: 'tool', content: 'rung' }, said('Done.')),
  chat(user('Sail to the sea, and ring'), called(['sail', { to: 'sea' }], ['ring', {}])),
  chat(user('Why?'), said('No function tells.')),
  { messages: [user('Without tools'), said('Left out.')] },
]

/** Answers as the texts say, in the form of Hermes. */
function scripted(texts: Readonly<Record<string, Readonly<Record<string, string>>>>) {
  const asked: { adapter: string | null; structure: object | undefined; tools: readonly object[] }[] = []
  const session = {
    toolForm: async () => 'hermes' as const,
    generate: async (prompts: { content?: string; role: string }[][], options: never) => {
      asked.push(options)
      const { adapter } = options as { adapter: string | null }
      return prompts.map((messages) => {
        const last = messages.at(-1)!
        return { text: texts[adapter ?? 'base'][last.content ?? ''] ?? 'Words.', promptTokens: 7 }
      })
    },
  }
  return { session: session as never, asked }
}
const write = (name: string, args: object) => `<tool_call>\n${JSON.stringify({ name, arguments: args })}\n</tool_call>`

it('makes a request of each answer, with the chat before it', async () => {
  const { requests } = await readRequests(DATA, {})
  const all = requests.map(({ messages, calls }) => [messages.length, calls.map(({ name }) => name)])
  expect(all).toEqual([
    [1, ['ring']],
    [3, []],
    [1, ['sail', 'ring']],
    [1, []],
  ])
  expect(callRequests(chat(user('a'), { ...said('b'), weight: 0 }), 'x')).toEqual([])
  const answers = [{ sail: { to: ['sea', 'the sea'] } }]
  const [only] = callRequests({ ...chat(user('a')), answers: JSON.stringify(answers) }, 'x')
  expect(only).toMatchObject({ answers, calls: [{ name: 'sail', arguments: { to: 'sea' } }] })
})

it('counts right calls, calls that are missing, and requests that are left alone', async () => {
  const good = {
    'Ring it twice': `I ring. ${write('ring', { times: 2 })}`,
    'Sail to the sea, and ring': `${write('ring', { times: 1 })}\n${write('sail', { to: ' sea' })}`,
  }
  const { session, asked } = scripted({
    base: { rung: write('ring', { times: 'x' }), 'Ring it twice': write('sail', { to: 'a' }) },
    good,
  })
  const report = await measureCalls(session, ['good'], await readRequests(DATA, {}), { resamples: 50 })
  const values = report.models.map(({ metrics }) => {
    return Object.fromEntries(Object.entries(metrics).map(([name, { value }]) => [name, value]))
  })
  const base = { rightCalls: 0, rightFunctions: 0, missedCalls: 0.5, leftAlone: 0.5, validCalls: 0.5 }
  expect(values[0]).toMatchObject(base)
  const right = { rightCalls: 1, rightFunctions: 1, rightArguments: 1, missedCalls: 0, leftAlone: 1, validCalls: 1 }
  expect(values[1]).toMatchObject(right)
  expect(values[1]['grammar.rightCalls']).toBe(1)
  expect(report.models[1].differences?.rightCalls).toMatchObject({ value: 1, low: 1, high: 1, isNoWorse: true })
  expect(report.models[0].functions).toEqual([
    { name: 'ring', due: 2, called: 1, right: 0 },
    { name: 'sail', due: 1, called: 1, right: 0 },
  ])
  expect(report.models[0].confusions).toContainEqual({ wanted: 'ring', called: 'sail', count: 1 })
  expect(report.models[1].confusions).toContainEqual({ wanted: 'ring', called: 'ring', count: 2 })
  expect(report.differing[0]).toMatchObject({
    record: 'Ring it twice',
    values: [0, 1],
    wanted: 'ring {"times":2}',
    answers: ['sail {"to":"a"}', 'ring {"times":2}'],
  })
  // Each model answers once free, and once under the grammar.
  expect(asked.map(({ adapter, structure }) => [adapter, structure !== undefined])).toEqual(
    [null, 'good'].flatMap((name) => [false, true].map((isKept) => [name, isKept])),
  )
})

it('pairs the intervals, and leaves out measures that no request has', async () => {
  const only = [DATA[2]]
  const { session } = scripted({ base: {} })
  const { models } = await measureCalls(session, [], await readRequests(only, {}), {})
  expect(Object.keys(models[0].metrics)).toEqual(['leftAlone', 'grammar.leftAlone'])
})

it('measures without the grammar if a schema has what none can hold', async () => {
  const odd = [
    { ...chat(user('a'), said('b')), tools: [tool('f', { a: { type: 'string', contentEncoding: 'base64' } })] },
  ]
  const warnings: string[] = []
  const on = { warning: (message: string) => void warnings.push(message) }
  const { session } = scripted({ base: {} })
  const { models } = await measureCalls(session, [], await readRequests(odd, {}), { on })
  expect(Object.keys(models[0].metrics)).toEqual(['leftAlone'])
  expect(warnings[0]).toMatch(/tools\[0\]\.function\.parameters\.properties\.a\.contentEncoding/)
})

it.each([
  ['an unknown function', called(['turn', {}]), /message 2: its call of turn fits none/],
  ['arguments of another type', called(['ring', { times: 'two' }]), /times: expected integer, got "two"/],
  ['an argument too few', called(['sail', {}]), /to: missing/],
])('refuses %s in the data', async (_, answer, message) => {
  expect(() => callRequests(chat(user('a'), answer), 'a.jsonl, line 3')).toThrow(message)
})

it('refuses two functions of one name, answers that are none, and data without tools', async () => {
  const twice = { messages: [user('a'), said('b')], tools: [TOOLS[0], TOOLS[0]] }
  expect(() => callRequests(twice, 'line 3')).toThrow(/line 3.*two functions are named ring/s)
  expect(() => callRequests({ ...chat(user('a')), answers: [1] }, 'line 3')).toThrow(/"answers" is not read/)
  await expect(readRequests([DATA[3]], {})).rejects.toThrow(/no record has tools and an answer/)
})

it('asks a model, free and under the grammar', async () => {
  const chatTemplate = `{%- if tools %}{{- 'ring sail' }}{%- endif %}{%- for message in messages %}{{- message.content }}{%- endfor %}`
  const report = await evaluate({
    ...{ model: 'models/union-3m', data: [DATA[2], DATA[1]], measure: 'calls', chatTemplate },
    ...{ maxNewTokens: 8, resamples: 10, threads: 1 },
  })
  expect(report).toMatchObject({ task: 'calls', records: 2, differBy: 'rightCalls' })
  expect(report.models[0].metrics).toMatchObject({ missedCalls: { value: 1 }, 'grammar.leftAlone': { value: 1 } })
})
