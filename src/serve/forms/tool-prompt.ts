// What the calls of a request's tools must look like: a structural tag of xgrammar forces calls that are required, and
// the arguments of tools that are `strict`.

import { checkedSchema } from '../../api/parts/entry.js'
import { HttpError } from '../http.js'
import type { TextRequest } from './form.js'

interface Tool {
  readonly function: { readonly name?: unknown; readonly parameters?: unknown; readonly strict?: unknown }
}

/** The structural tag of the calls: https://xgrammar.mlc.ai/docs/tutorials/structural_tag.html */
export function structureOf({ tools: { choice, isParallel }, options }: TextRequest, form: 'hermes' | 'llama') {
  const tools = options.tools as readonly Tool[]
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
