// The JSON form of Llama 3.1 and 3.2: the whole answer is one object with `name` and `parameters`.

import { type CallForm, jsonTag, jsonText } from './call.js'

const PYTHON_TAG = '<|python_tag|>'

export const LLAMA: CallForm = {
  name: 'llama',
  // Its templates say: {"name": function name, "parameters": dictionary of argument name and its value}
  marks: /"parameters": *[a-z]/,
  opens: [],
  tokens: [PYTHON_TAG],
  ends: ['<|eom_id|>'],
  isSingle: true,
  list: { begin: '', separator: '', end: '' },
  write: ([{ name, arguments: parameters }]) => jsonText({ name, parameters }),
  *read(text, sink) {
    yield* text.spaces()
    yield* text.take(PYTHON_TAG)
    yield* text.spaces()
    if (!(yield* text.call(sink))) return false
    // The call is the whole answer.
    while (!text.hasEnded) yield
    text.at = text.text.length
    return true
  },
  tag: (name, schema) => ({
    begin: `{"name": ${JSON.stringify(name)}, "parameters": `,
    content: jsonTag(schema),
    end: '}',
  }),
}
