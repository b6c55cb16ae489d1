// Tools for chat templates that have no place for them: a system message in the form that Hermes documents, whose calls
// `tool-calls` finds. https://github.com/NousResearch/Hermes-Function-Calling

import { attempt } from '../base/errors.js'
import type { Model } from '../graph/model-folder.js'
import { type MessageOfParts, withArgumentObjects } from '../text/chat.js'
import { loadChatTemplate } from '../text/chat-template.js'
import type { TextRequest } from './texts.js'

const PROBE = { type: 'function', function: { name: 'qztoolqz', description: 'qztoolqz', parameters: {} } }

/** True also for a template that refuses the probe: it is asked with the chat itself. */
async function readsTools({ directory }: Model, text: string | undefined): Promise<boolean> {
  const template = await loadChatTemplate(directory, text)
  if (template === undefined) return true
  const options = { tools: [PROBE], addGenerationPrompt: true }
  const { value } = attempt(() => template.render([{ role: 'user', content: 'a' }], options, 'tools').text)
  return value?.includes('qztoolqz') ?? true
}

/** @param recorded the chat template of the adapter, which goes before that of the model */
export async function withTools(
  model: Model,
  recorded: string | undefined,
  request: TextRequest,
): Promise<TextRequest> {
  const { tools } = request.options
  if (tools === undefined) return request
  const answers = model.onnx.once(readsTools, () => new Map<string | undefined, Promise<boolean>>())
  const reads = answers.get(recorded) ?? readsTools(model, recorded)
  answers.set(recorded, reads)
  if (await reads) return request
  const prompts = request.prompts.map((prompt) => withSystem(prompt as readonly MessageOfParts[], tools))
  return { ...request, prompts }
}

function withSystem(messages: readonly MessageOfParts[], tools: readonly unknown[]): MessageOfParts[] {
  const isSystem = ({ role }: MessageOfParts) => role === 'system' || role === 'developer'
  const [first] = messages
  const rest = isSystem(first) ? messages.slice(1) : messages
  const text = isSystem(first) ? `${textOf(first)}\n\n` : ''
  return [{ role: 'system', content: text + instructions(tools) }, ...rest.map(withArgumentObjects).map(plainMessage)]
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
function plainMessage(message: MessageOfParts): MessageOfParts {
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
