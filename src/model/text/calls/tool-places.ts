// Gives tools, calls and results a place in chat templates that have none: in the system message, in the answers, and
// in messages of the user. So training and sessions show a model the same texts.

import { attempt } from '../../../core/base/errors.js'
import type { MessageOfParts } from '../chat.js'
import type { ChatTemplate, PlainTemplate, RenderedChat } from '../template.js'
import type { CallForm } from './call.js'
import { callFormOf, callsIn, NAMED_FORM, writeCalls } from './forms.js'
import { checkKnownTools, knownToolsIn } from './known-tools.js'

const [TOOL, CALL, RESULT, ID] = ['qztoolqz', 'qzcallqz', 'qzresultqz', 'qzqzqzqz1']
const PROBE = {
  type: 'function',
  function: { name: TOOL, description: TOOL, parameters: { type: 'object', properties: {} } },
}
const QUESTION = { role: 'user', content: 'a' }
const CALLING = {
  role: 'assistant',
  content: '',
  tool_calls: [{ id: ID, type: 'function', function: { name: CALL, arguments: {} } }],
}
const RESULTS = { role: 'tool', tool_call_id: ID, name: CALL, content: RESULT }

/** What a template shows. A template that refuses a probe counts as one that shows it: it is asked with the chat. */
interface Places {
  readonly form: CallForm
  readonly tools: boolean
  readonly calls: boolean
  /** False if the template writes nothing of them. */
  readonly results: boolean
}

function placesOf({ text, render }: PlainTemplate): Places {
  const written = (messages: readonly MessageOfParts[], tools?: readonly object[]) =>
    attempt(() => render(messages, { tools, addGenerationPrompt: true }, 'tools').text).value
  const asked = written([QUESTION], [PROBE])
  const called = written([QUESTION, CALLING, RESULTS], [PROBE])
  const { form, isNamed } = callFormOf(text, asked ?? '', called ?? '')
  // A form that is named, and is not that of the template, is not what its places are for.
  const isForeign = isNamed && callFormOf(text.replace(NAMED_FORM, ''), asked ?? '', called ?? '').form !== form
  const tools = !isForeign && (asked === undefined || asked !== written([QUESTION], []))
  return {
    form,
    tools,
    calls: !isForeign && (called === undefined || called.includes(CALL)),
    results: called === undefined || called.includes(RESULT),
  }
}

/** Adds `calls`, and places for what the template does not show. */
export function withToolPlaces(template: PlainTemplate): ChatTemplate {
  const { render } = template
  const known = knownToolsIn(template.text)
  let found: Places | undefined
  const places = () => (found ??= placesOf(template))
  return {
    ...template,
    get calls() {
      return places().form
    },
    knownTools: known,
    render(messages, given, where): RenderedChat {
      if (known !== undefined) checkKnownTools(known, given.tools ?? [], `${where}, tools`)
      const options = known === undefined ? given : { ...given, tools: undefined }
      const { tools = [] } = options
      const hasTools =
        tools.length > 0 || messages.some(({ role, tool_calls }) => role === 'tool' || tool_calls?.length)
      if (!hasTools) return render(messages, options, where)
      return render(placed(messages, tools, places(), where), options, where)
    },
  }
}

function placed(
  messages: readonly MessageOfParts[],
  tools: readonly unknown[],
  places: Places,
  where: string,
): readonly MessageOfParts[] {
  const { form } = places
  const all = messages.map((message, i) => {
    const calls = message.tool_calls ?? []
    if (form.isSingle && calls.length > 1) writeCalls(form, callsIn(calls), tools, `${where}, message ${i + 1}`)
    // A template that writes any role, and no tools, does not know what Hermes' instructions say about results.
    const isTold = places.results && (places.tools || tools.length === 0)
    if (message.role === 'tool' && !isTold) {
      return { role: 'user', content: `<tool_response>\n${textOf(message)}\n</tool_response>` }
    }
    if (calls.length > 0 && !places.calls) {
      const written = writeCalls(form, callsIn(calls), tools, `${where}, message ${i + 1}`)
      const { tool_calls: _, ...rest } = message
      return { ...rest, content: [textOf(message), written].filter((text) => text !== '').join('\n') }
    }
    return form.name.startsWith('mistral') ? withShortIds(message) : message
  })
  if (places.tools || tools.length === 0) return all
  const [first, ...rest] = all
  const isSystem = first?.role === 'system' || first?.role === 'developer'
  const content = `${isSystem ? `${textOf(first)}\n\n` : ''}${instructions(form, tools)}`
  return [{ role: 'system', content }, ...(isSystem ? rest : all)]
}

/** Templates of Mistral take ids of 9 letters and digits. */
function withShortIds(message: MessageOfParts): MessageOfParts {
  const short = (id: unknown) =>
    `${id ?? ''}`
      .replace(/[^a-zA-Z0-9]/g, '')
      .slice(-9)
      .padStart(9, '0')
  const { tool_calls: calls, tool_call_id: id } = message as MessageOfParts & { tool_call_id?: unknown }
  return {
    ...message,
    ...(calls !== undefined && {
      tool_calls: calls.map((call) => ({ ...(call as object), id: short((call as { id?: unknown }).id) })),
    }),
    ...(id !== undefined && { tool_call_id: short(id) }),
  }
}

/** In the words of https://github.com/NousResearch/Hermes-Function-Calling */
function instructions(form: CallForm, tools: readonly unknown[]): string {
  const [how, example] =
    form.name === 'hermes'
      ? [
          'return a JSON object with function name and arguments within <tool_call></tool_call> tags:',
          '<tool_call>\n{"name": <function-name>, "arguments": <args-dict>}\n</tool_call>',
        ]
      : ['write:', form.write([{ name: 'function_name', arguments: { argument_name: 'value' } }])]
  return [
    'You are a function calling AI model. You are provided with function signatures within <tools></tools> XML tags.',
    'You may call one or more functions to assist with the user query.',
    `<tools>\n${tools.map((tool) => JSON.stringify(tool)).join('\n')}\n</tools>`,
    `For each function call ${how}`,
    example,
  ].join('\n')
}

function textOf({ content = '' }: MessageOfParts): string {
  if (typeof content === 'string') return content
  return content.map((part) => (part.type === 'text' ? part.text : '')).join('')
}
