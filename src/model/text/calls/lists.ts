// Forms with one JSON list of all calls: Mistral's up to version 10, Granite 3's, and Phi-4-mini's.

import { type CallForm, jsonTag, jsonText, type ToolForm } from './call.js'

function listForm(name: ToolForm, marks: RegExp, opens: readonly string[], more: Partial<CallForm> = {}): CallForm {
  return {
    ...{ name, marks, opens, ...more },
    list: { begin: `${opens[0]}[`, separator: ', ', end: ']' },
    write: (calls) => `${opens[0]}[${calls.map((call) => jsonText(call)).join(', ')}]`,
    *read(text, sink) {
      yield* text.spaces()
      if ((yield* text.take('[')) === undefined) return false
      return yield* text.calls(sink)
    },
    tag: (called, schema) => ({
      begin: `{"name": ${JSON.stringify(called)}, "arguments": `,
      content: jsonTag(schema),
      end: '}',
    }),
  }
}

export const GRANITE = listForm('granite', /<\|tool_call\|>/, ['<|tool_call|>', '<tool_call>'], {
  tokens: ['<|tool_call|>', '<tool_call>'],
})

export const PHI = listForm('phi', /functools\[|<\|tool\|>/, ['functools'])

const OPEN = '[TOOL_CALLS]'

/** Versions from 11 on write a marker, the name and the arguments for each call. Each form reads both. */
function readMistral(old: CallForm): CallForm['read'] {
  return function* (text, sink, opened) {
    yield* text.spaces()
    if ((yield* text.peek()) === '[') return yield* old.read(text, sink, opened)
    const name = yield* text.while(/[^\s{[]/)
    if (name === '') return false
    while ((yield* text.take('[ARGS]', '[CALL_ID]')) === '[CALL_ID]') yield* text.while(/\w/)
    yield* text.spaces()
    if ((yield* text.peek()) !== '{') return false
    sink.start(name)
    yield* text.json(undefined, (part) => sink.argue(part))
    return true
  }
}

const LISTED = listForm('mistral', /\[TOOL_CALLS\]/, [OPEN], { tokens: [OPEN, '[ARGS]', '[CALL_ID]'] })

export const MISTRAL: CallForm = { ...LISTED, read: readMistral(LISTED) }

export const MISTRAL_11: CallForm = {
  ...MISTRAL,
  name: 'mistral-11',
  marks: /\[TOOL_CALLS\]['"]? *[+~}]+.{0,20}name|\[ARGS\]/,
  list: { begin: '', separator: '', end: '' },
  write: (calls) => calls.map(({ name, arguments: args }) => `${OPEN}${name}${jsonText(args)}`).join(''),
  tag: (name, schema) => ({ begin: `${OPEN}${name}`, content: jsonTag(schema), end: '' }),
}
