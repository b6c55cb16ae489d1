// What the calls of a request's tools must look like: a structural tag of xgrammar forces calls that are required, and
// the arguments of tools that are `strict`.

import { type CallForm, callStructure, checkKnownTools, heldSchema, noCalls } from '../../api/parts/entry.js'
import { HttpError } from '../http.js'
import type { TextRequest } from './form.js'

interface Tool {
  readonly function: { readonly name: string; readonly parameters?: unknown; readonly strict?: unknown }
}

/** The structural tag of the calls: https://xgrammar.mlc.ai/docs/tutorials/structural_tag.html */
export function structureOf(
  { tools: { choice, isParallel }, options, format }: TextRequest,
  form: CallForm,
  known: readonly object[] | undefined,
) {
  const { tools: offeredTools } = options
  // An adapter that knows its functions may call them although none is offered.
  if (offeredTools === undefined) return format === undefined ? noCalls(form) : undefined
  const tools = offeredTools as readonly Tool[]
  if (known !== undefined) checkKnownTools(known as never, tools, 'tools')
  const isPart = known !== undefined && tools.length < known.length
  const isForced = choice === 'required' || typeof choice === 'object'
  // Schemas of the whole text say what it is like.
  if (format !== undefined || (!isForced && !isPart && !tools.some((tool) => tool.function.strict === true)))
    return undefined
  const offered = typeof choice === 'object' ? tools.filter((tool) => tool.function.name === choice.name) : tools
  if (offered.length === 0) {
    throw new HttpError(400, 'tool_choice names a function that is not among the tools', { param: 'tool_choice' })
  }
  const functions = offered.map((tool) => {
    const { name, parameters, strict } = tool.function
    const place = `tools[${tools.indexOf(tool)}].function.parameters`
    // Without `strict`, a call that is not forced may have any arguments.
    const isBound = parameters !== undefined && parameters !== null && (isForced || strict === true)
    const keep = strict === true ? 'all' : 'some'
    return { name, schema: isBound ? heldSchema(parameters as object, place, keep, form.keywords).schema : undefined }
  })
  return callStructure(form, { functions, isForced, isSingle: !isParallel || typeof choice === 'object' })
}
