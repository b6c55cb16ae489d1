// The form of Hermes, Qwen2.5, Qwen3, Granite 4 and SmolLM3: a JSON object in a tag for each call.
// https://github.com/NousResearch/Hermes-Function-Calling

import { type CallForm, jsonTag, jsonText } from './call.js'

const [OPEN, CLOSE] = ['<tool_call>', '</tool_call>']

export const HERMES: CallForm = {
  name: 'hermes',
  marks: /<tool_call>/,
  opens: [OPEN],
  tokens: [OPEN, CLOSE],
  list: { begin: '', separator: '\n', end: '' },
  write: (calls) => calls.map((call) => `${OPEN}\n${jsonText(call)}\n${CLOSE}`).join('\n'),
  *read(text, sink) {
    yield* text.spaces()
    if (!(yield* text.call(sink, CLOSE))) return false
    text.drop()
    if ((yield* text.until(CLOSE)) === undefined) text.at = text.text.length
    return true
  },
  tag: (name, schema) => ({
    begin: `${OPEN}\n{"name": ${JSON.stringify(name)}, "arguments": `,
    content: jsonTag(schema),
    end: `}\n${CLOSE}`,
  }),
}
