// The form of Qwen3-Coder: tags for functions and parameters. Values are texts, so that their types come from the
// schema.

import { isObject, jsonIn } from '../../../core/base/options.js'
import { type CallForm, jsonTag, jsonText } from './call.js'
import { WORDS } from './gemma.js'
import type { CallSink, FunctionTool } from './growing-text.js'

const [OPEN, CLOSE] = ['<tool_call>', '</tool_call>']
const [PARAMETER, PARAMETER_END, FUNCTION_END] = ['<parameter=', '</parameter>', '</function>']

export const QWEN3_CODER: CallForm = {
  name: 'qwen3-coder',
  marks: /<parameter=/,
  opens: [OPEN, '<function='],
  tokens: [OPEN, CLOSE],
  list: { begin: '', separator: '\n', end: '' },
  write: (calls) =>
    calls
      .map(({ name, arguments: args }) => {
        const written = Object.entries(args).map(([key, value]) => {
          return `${PARAMETER}${key}>\n${typeof value === 'string' ? value : jsonText(value)}\n${PARAMETER_END}\n`
        })
        return `${OPEN}\n<function=${name}>\n${written.join('')}${FUNCTION_END}\n${CLOSE}`
      })
      .join('\n'),
  *read(text, sink, opened) {
    if (opened === OPEN) {
      yield* text.spaces()
      if ((yield* text.take('<function=')) === undefined) return false
    }
    const name = yield* text.until('>')
    if (name === undefined) return false
    const args: [string, unknown][] = []
    for (;;) {
      yield* text.spaces()
      if ((yield* text.take(PARAMETER)) === undefined) break
      const key = yield* text.until('>')
      if (key === undefined) return false
      let value = ''
      yield* text.take('\n')
      for (;;) {
        const part = yield* text.until(PARAMETER_END)
        if (part === undefined) return false
        value += part
        // A value may contain the end of a value: the real one has a parameter or the function's end after it.
        const ended = text.at
        yield* text.spaces()
        const isEnd = (yield* text.take(PARAMETER, FUNCTION_END)) !== undefined
        text.at = ended
        if (isEnd) break
        value += PARAMETER_END
      }
      args.push([key, typedValue(value.replace(/\n$/, ''), schemaOf(sink, name, key))])
    }
    if ((yield* text.take(FUNCTION_END)) === undefined) return false
    sink.start(name)
    sink.argue(JSON.stringify(Object.fromEntries(args)))
    const end = text.at
    yield* text.spaces()
    if (opened !== OPEN || (yield* text.take(CLOSE)) === undefined) text.at = end
    return true
  },
  tag: (name, schema) => ({
    begin: `${OPEN}\n<function=${name}>\n`,
    content: parametersTag(schema as Readonly<Record<string, unknown>> | undefined),
    end: `${FUNCTION_END}\n${CLOSE}`,
  }),
}

/** The parameters in the order of the schema. The library's own rule for this form does not take lists of objects. */
function parametersTag(schema: Readonly<Record<string, unknown>> | undefined): object {
  if (!isObject(schema?.properties)) return { type: 'any_text' }
  const none = { type: 'grammar', grammar: 'root ::= ""' }
  const required = Array.isArray(schema.required) ? schema.required : []
  const elements = Object.entries(schema.properties).map(([key, part]) => {
    const begin = `${PARAMETER}${key}>\n`
    const tag = { type: 'tag', begin, content: valueTag(part), end: `\n${PARAMETER_END}\n` }
    return required.includes(key) ? tag : { type: 'or', elements: [tag, none] }
  })
  return elements.length === 0 ? none : { type: 'sequence', elements }
}

function valueTag(part: unknown): object {
  if (!isObject(part) || !isTextOnly(part)) return jsonTag(part as object)
  const texts = part.const === undefined ? part.enum : [part.const]
  if (!Array.isArray(texts)) return { type: 'any_text' }
  return { type: 'or', elements: texts.map((value) => ({ type: 'const_string', value })) }
}

function schemaOf({ tools }: CallSink, name: string, key: string): unknown {
  const tool: FunctionTool | undefined = tools.find((each) => each.name === name)
  const properties = tool?.parameters?.properties
  return isObject(properties) && Object.hasOwn(properties, key) ? properties[key] : undefined
}

/** A text counts as JSON if the schema allows its type, and as text if it allows only texts. */
function typedValue(text: string, schema: unknown): unknown {
  const value = WORDS.has(text) ? WORDS.get(text) : jsonIn(text.trim())
  const isText = isObject(schema) && isTextOnly(schema)
  return value === undefined || isText ? text : value
}

function isTextOnly({ type, enum: values, const: only, anyOf }: Readonly<Record<string, unknown>>): boolean {
  const given = only === undefined ? values : [only]
  if (Array.isArray(given)) return given.every((value) => typeof value === 'string')
  if (Array.isArray(anyOf)) return anyOf.every((part) => isObject(part) && isTextOnly(part))
  return [type].flat().every((each) => each === 'string') && type !== undefined
}
