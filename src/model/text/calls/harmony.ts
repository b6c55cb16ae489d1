// The form of GPT-OSS: messages with channels. https://github.com/openai/harmony/blob/main/docs/format.md
// Words are the messages of the channels `final` and `commentary`; the analysis is left out.

import { type CallForm, jsonTag, jsonText } from './call.js'

const [START, CHANNEL, MESSAGE, END, CALL] = ['<|start|>', '<|channel|>', '<|message|>', '<|end|>', '<|call|>']
const RETURN = '<|return|>'
/** The prompt may end with the head of the message. */
const TO = ' to=functions.'
const WORDS = [START, CHANNEL, END, CALL, RETURN]

export const HARMONY: CallForm = {
  name: 'harmony',
  marks: /<\|channel\|>/,
  opens: [TO, ...WORDS],
  words: WORDS,
  isSingle: true,
  tokens: [...WORDS, MESSAGE, '<|constrain|>'],
  ends: [CALL],
  list: { begin: '', separator: '', end: '' },
  write: ([{ name, arguments: args }]) => `${headOf(name)}${jsonText(args)}${CALL}`,
  *read(text, sink, opened) {
    if (opened !== START && opened !== CHANNEL && opened !== TO) return true
    const head = yield* text.until(MESSAGE)
    if (head === undefined) return false
    const name = /\bto=functions\.([^\s<]+)/.exec(opened + head)?.[1]
    if (name !== undefined) {
      sink.start(name)
      yield* text.json(CALL, (part) => sink.argue(part))
      text.drop()
      yield* text.spaces()
      yield* text.take(CALL, END)
    } else if (/analysis/.test(head)) {
      if ((yield* text.until(END, START, RETURN)) === undefined) text.at = text.text.length
    }
    return true
  },
  tag: (name, schema) => ({ begin: headOf(name), content: jsonTag(schema), end: CALL }),
}

const headOf = (name: string) => `${CHANNEL}commentary to=functions.${name} <|constrain|>json${MESSAGE}`
