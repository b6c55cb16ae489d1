// How a request's tools reach the model, and what its calls must look like. Chat templates that have no place for tools
// get a system message in the form that Hermes documents. A structural tag of xgrammar forces calls that are required,
// and the arguments of tools that are `strict`. https://github.com/NousResearch/Hermes-Function-Calling

import { attempt } from '../base/errors.js'
import type { Model } from '../graph/model-folder.js'
import { templateOf } from '../infer/generate/messages.js'
import { checkedSchema } from '../infer/schemas/schemas.js'
import { type MessageOfParts, withArgumentObjects } from '../text/chat.js'
import { HttpError } from './http.js'
import type { TextRequest } from './texts.js'

const PROBE = { type: 'function', function: { name: 'qztoolqz', description: 'qztoolqz', parameters: {} } }

/** How a template asks for calls; `none`: it does not read tools. */
type CallForm = 'hermes' | 'llama' | 'none'

/** A template that refuses the probe counts as one that reads tools: it is asked with the chat itself. */
async function formOf(model: Model, text: string | undefined): Promise<CallForm> {
  const template = await templateOf(model, text)
  if (template === undefined) return 'hermes'
  const options = { tools: [PROBE], addGenerationPrompt: true }
  const { value } = attempt(() => template.render([{ role: 'user', content: 'a' }], options, 'tools').text)
  if (value !== undefined && !value.includes('qztoolqz')) return 'none'
  // Chat templates of Llama 3 say: {"name": function name, "parameters": dictionary of argument name and its value}
  return /"parameters": *[a-z]/.test(value ?? template.text) ? 'llama' : 'hermes'
}

/** @param recorded the chat template of the adapter, which goes before that of the model */
export async function withTools(
  model: Model,
  recorded: string | undefined,
  request: TextRequest,
): Promise<TextRequest> {
  const tools = request.options.tools as readonly Tool[] | undefined
  if (tools === undefined) return request
  const form = await formOf(model, recorded)
  const options = { ...request.options, structure: structureOf(tools, request, form) }
  if (form !== 'none') return { ...request, options }
  const prompts = request.prompts.map((prompt) => withSystem(prompt as readonly MessageOfParts[], tools))
  return { ...request, prompts, options }
}

interface Tool {
  readonly function: { readonly name?: unknown; readonly parameters?: unknown; readonly strict?: unknown }
}

/** The structural tag of the calls: https://xgrammar.mlc.ai/docs/tutorials/structural_tag.html */
function structureOf(tools: readonly Tool[], { tools: asked, options }: TextRequest, form: CallForm) {
  const { choice, isParallel } = asked
  const isForced = choice === 'required' || typeof choice === 'object'
  // Schemas of the whole text say what it is like.
  if (options.schema !== undefined || (!isForced && !tools.some((tool) => tool.function.strict === true)))
    return undefined
  const offered = typeof choice === 'object' ? tools.filter((tool) => tool.function.name === choice.name) : tools
  if (offered.length === 0) {
    throw new HttpError(400, 'tool_choice names a function that is not among the tools', { param: 'tool_choice' })
  }
  const tags = offered.map((tool) => {
    const { name, parameters, strict } = tool.function
    const place = `tools[${tools.indexOf(tool)}].function.parameters`
    // Without `strict`, a call that is not forced may have any arguments.
    const isBound = parameters !== undefined && parameters !== null && (isForced || strict === true)
    const schema = isBound ? JSON.parse(checkedSchema(parameters as object, place)) : { type: 'object' }
    const key = form === 'llama' ? 'parameters' : 'arguments'
    const head = `{"name": ${JSON.stringify(name)}, "${key}": `
    return {
      type: 'tag',
      begin: form === 'llama' ? head : `<tool_call>\n${head}`,
      content: { type: 'json_schema', json_schema: schema },
      end: form === 'llama' ? '}' : '}\n</tool_call>',
    }
  })
  if (isForced) {
    const isOne = !isParallel || typeof choice === 'object' || form === 'llama'
    return { type: 'tags_with_separator', tags, separator: '\n', at_least_one: true, stop_after_first: isOne }
  }
  if (form === 'llama') return undefined
  return { type: 'triggered_tags', triggers: ['<tool_call>'], tags, stop_after_first: !isParallel }
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
