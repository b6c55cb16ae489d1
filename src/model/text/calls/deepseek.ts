// The forms of DeepSeek V3 and R1 (a fenced block of JSON) and of V3.1 (bare JSON).

import { type CallForm, jsonTag, jsonText } from './call.js'

const [ALL, ALL_OVER] = ['<｜tool▁calls▁begin｜>', '<｜tool▁calls▁end｜>']
const [OPEN, SEP, CLOSE] = ['<｜tool▁call▁begin｜>', '<｜tool▁sep｜>', '<｜tool▁call▁end｜>']
const [FENCE, FENCE_END] = ['\n```json\n', '\n```']

function deepSeek(form: Pick<CallForm, 'name' | 'marks'>, head: (name: string) => string, end: string): CallForm {
  return {
    ...form,
    opens: [ALL, OPEN],
    tokens: [ALL, ALL_OVER, OPEN, SEP, CLOSE],
    list: { begin: ALL, separator: '', end: ALL_OVER },
    write: (calls) =>
      `${ALL}${calls.map((call) => `${head(call.name)}${jsonText(call.arguments)}${end}`).join('')}${ALL_OVER}`,
    *read(text, sink, opened) {
      let isFirst = true
      for (let isOpen = opened === OPEN; ; isOpen = false) {
        if (!isOpen) {
          yield* text.spaces()
          if ((yield* text.take(OPEN)) === undefined) break
        }
        const kind = yield* text.until(SEP)
        if (kind === undefined) return !isFirst
        const name = kind === 'function' ? yield* text.until(FENCE) : kind
        if (name === undefined || (yield* text.peek()) !== '{') return !isFirst
        sink.start(name.trim())
        isFirst = false
        yield* text.json(CLOSE, (part) => sink.argue(part))
        text.drop()
        if ((yield* text.until(CLOSE)) === undefined) text.at = text.text.length
      }
      yield* text.take(ALL_OVER)
      return !isFirst
    },
    tag: (name, schema) => ({ begin: head(name), content: jsonTag(schema), end }),
  }
}

export const DEEPSEEK = deepSeek(
  { name: 'deepseek', marks: /<｜tool▁calls▁begin｜>[\s\S]*```json/ },
  (name) => `${OPEN}function${SEP}${name}${FENCE}`,
  `${FENCE_END}${CLOSE}`,
)

export const DEEPSEEK_31 = deepSeek(
  { name: 'deepseek-31', marks: /<｜tool▁calls▁begin｜>/ },
  (name) => `${OPEN}${name}${SEP}`,
  CLOSE,
)
