// session.call: typed calls, checked by their schemas.

import { describe, expect, expectTypeOf, it } from 'vitest'
import { type AdapterSession, openSession } from '../../src/api/node.js'
import type { CallAnswer, StandardSchema } from '../../src/run/calls.js'
import { call } from '../../src/run/readings/call.js'

/** A schema as zod 4.2 and others give it. */
function schema<Output>(json: object, check: (value: never) => string | undefined): StandardSchema<Output> {
  return {
    '~standard': {
      version: 1,
      vendor: 'test',
      validate: (value) => {
        const message = check(value as never)
        return message === undefined ? { value: value as Output } : { issues: [{ message, path: ['to'] }] }
      },
      jsonSchema: { input: () => json as Record<string, unknown> },
    },
  }
}
const TOOLS = {
  ring: { description: 'Rings', parameters: { type: 'object', properties: { times: { type: 'integer' } } } },
  sail: {
    parameters: schema<{ to: 'sea' | 'port' }>({ type: 'object', properties: { to: { type: 'string' } } }, ({ to }) =>
      ['sea', 'port'].includes(to) ? undefined : 'no such place',
    ),
  },
}
const ASKED = [{ role: 'user', content: 'a' }]
const write = (name: string, args: object) => `<tool_call>\n${JSON.stringify({ name, arguments: args })}\n</tool_call>`

function answering(text: string, known?: object[]) {
  const asked: Parameters<AdapterSession['generate']>[1][] = []
  const session = {
    toolForm: async () => 'hermes' as const,
    knownTools: async () => known as never,
    generate: async (_: unknown, options: never) => {
      asked.push(options)
      return { text } as never
    },
  }
  return { session: session as never as AdapterSession, asked }
}

it('gives calls with checked arguments, words, and what is invalid with its problem', async () => {
  const text = [
    'I sail.',
    ...[write('sail', { to: 'sea' }), write('sail', { to: 'moon' }), write('ring', { times: 'x' })],
    ...[write('fly', {}), '<tool_call>\n{"name": "ring", "arguments": {"times": \n</tool_call>'],
  ].join('\n')
  const { session, asked } = answering(text)
  const answer = await call(session, ASKED, { tools: TOOLS })
  expect(answer.calls).toEqual([{ name: 'sail', arguments: { to: 'sea' } }])
  expect(answer.text).toBe('I sail.')
  expect(answer.invalid.map(({ name, problem }) => [name, problem])).toEqual([
    ['sail', 'to: no such place'],
    ['ring', 'times: expected integer, got "x"'],
    ['fly', 'no function is named fly'],
    ['ring', 'its arguments are no JSON object'],
  ])
  expect(asked[0]).toMatchObject({ temperature: 0, structure: undefined })
  expect(asked[0]?.tools?.[1]).toMatchObject({ type: 'function', function: { name: 'sail' } })
})

it('types calls as a union by name', () => {
  type Answer = CallAnswer<typeof TOOLS>['calls'][number]
  expectTypeOf<Extract<Answer, { name: 'sail' }>['arguments']>().toEqualTypeOf<{ to: 'sea' | 'port' }>()
  expectTypeOf<Extract<Answer, { name: 'ring' }>['arguments']>().toEqualTypeOf<Readonly<Record<string, unknown>>>()
  expectTypeOf<CallAnswer<object[]>['calls'][number]['name']>().toEqualTypeOf<string>()
})

it('takes the functions that an adapter knows, and keeps calls to a part of them', async () => {
  const known = [{ name: 'ring' }, { name: 'sail' }]
  const { session, asked } = answering(write('ring', {}), known)
  expect((await call(session, ASKED)).calls).toEqual([{ name: 'ring', arguments: {} }])
  expect(asked[0]?.structure).toBeUndefined()
  await call(session, ASKED, { tools: { ring: {} } })
  expect(JSON.stringify(asked[1]?.structure)).toMatch(/ring/)
  expect(JSON.stringify(asked[1]?.structure)).not.toMatch(/sail/)
})

describe('bad input', () => {
  it.each<[string, object | undefined, RegExp]>([
    ['no functions', undefined, /tools.*no function to call/s],
    ['two functions of one name', [{ name: 'a' }, { name: 'a' }], /tools.*two functions are named a/s],
    [
      'a schema that tells no JSON Schema',
      { f: { parameters: { '~standard': { version: 1, vendor: 'zod' } } } },
      /z\.toJSONSchema/,
    ],
    ['a schema that no grammar holds', { f: { parameters: { not: {} } } }, /tools\.f\.parameters\.not/],
  ])('%s', async (_, tools, message) => {
    const { session } = answering('')
    await expect(call(session, ASKED, { tools: tools as never, strict: true })).rejects.toThrow(message)
  })
})

it('runs in a session', async () => {
  const session = await openSession('models/union-3m', { on: {} })
  const chatTemplate = '{{ messages[-1].content }}'
  const options = { chatTemplate, maxNewTokens: 4, tools: TOOLS } as const
  expect(await session.call(ASKED, options)).toMatchObject({ calls: [], invalid: [] })
  await session.dispose()
})
