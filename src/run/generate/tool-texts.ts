// How tools reach a model whose chat template has no place for them: in a system message, in the form that Hermes
// documents. https://github.com/NousResearch/Hermes-Function-Calling

import { attempt } from '../../core/base/errors.js'
import { type MessageOfParts, withArgumentObjects } from '../../model/text/chat.js'
import type { ChatTemplate } from '../../model/text/template.js'

const PROBE = { type: 'function', function: { name: 'qztoolqz', description: 'qztoolqz', parameters: {} } }

/** How a template asks for calls; `none`: it does not read tools. */
export type CallForm = 'hermes' | 'llama' | 'none'

/** A template that refuses the probe counts as one that reads tools: it is asked with the chat itself. */
export function callForm(template: ChatTemplate): CallForm {
  const render = (tools: readonly object[]) =>
    template.render([{ role: 'user', content: 'a' }], { tools, addGenerationPrompt: true }, 'tools').text
  const { value } = attempt(() => render([PROBE]))
  if (value !== undefined && value === attempt(() => render([])).value) return 'none'
  // Chat templates of Llama 3 say: {"name": function name, "parameters": dictionary of argument name and its value}
  return /"parameters": *[a-z]/.test(value ?? template.text) ? 'llama' : 'hermes'
}

/** Messages that say what the tools are, with calls and their results as texts. */
export function withToolTexts(messages: readonly MessageOfParts[], tools: readonly unknown[]): MessageOfParts[] {
  const isSystem = ({ role }: MessageOfParts) => role === 'system' || role === 'developer'
  const [first] = messages
  const rest = isSystem(first) ? messages.slice(1) : messages
  const text = isSystem(first) ? `${textOf(first)}\n\n` : ''
  return [{ role: 'system', content: text + instructions(tools) }, ...rest.map(plainMessage)]
}

function instructions(tools: readonly unknown[]): string {
  return [
    'You are a function calling AI model. You are provided with function signatures within <tools></tools> XML tags.',
    'You may call one or more functions to assist with the user query.',
    `<tools>\n${tools.map((tool) => JSON.stringify(tool)).join('\n')}\n</tools>`,
    'For each function call return a JSON object with function name and arguments within <tool_call></tool_call> tags:',
    '<tool_call>\n{"name": <function-name>, "arguments": <args-dict>}\n</tool_call>',
  ].join('\n')
}

/** Calls and their results as texts: such a template has no place for them either. */
export function plainMessage(given: MessageOfParts): MessageOfParts {
  const message = withArgumentObjects(given)
  const { role } = message
  const calls = message.tool_calls as readonly { readonly function?: object }[] | undefined
  if (role === 'tool') return { role: 'user', content: `<tool_response>\n${textOf(message)}\n</tool_response>` }
  if (calls === undefined) return message
  const written = calls.map((call) => `<tool_call>\n${JSON.stringify(call.function ?? {})}\n</tool_call>`)
  return { role, content: [textOf(message), ...written].filter((text) => text !== '').join('\n') }
}

function textOf({ content = '' }: MessageOfParts): string {
  if (typeof content === 'string') return content
  return content.map((part) => (part.type === 'text' ? part.text : '')).join('')
}
