// Asks a model for calls of functions, and checks them by the functions' schemas.

import { ConfigError } from '../../core/base/errors.js'
import { isList, isObject } from '../../core/base/options.js'
import { callProblem } from '../../model/text/calls/compare.js'
import { callFormNamed, uniqueFunctions } from '../../model/text/calls/forms.js'
import type { FunctionTool } from '../../model/text/calls/growing-text.js'
import { AnswerReader } from '../../model/text/calls/reader.js'
import { callStructure } from '../../model/text/calls/tags.js'
import type { MessageOfParts } from '../../model/text/chat.js'
import type { CallAnswer, CallTools, StandardSchema } from '../calls.js'
import { checkedSchema } from '../schemas/schemas.js'
import type { AdapterSession, CallOptions } from '../session.js'

export async function call(
  session: Pick<AdapterSession, 'generate' | 'toolForm' | 'knownTools'>,
  messages: readonly MessageOfParts[],
  { tools, toolChoice = 'auto', strict = false, ...options }: CallOptions<CallTools> = {},
): Promise<CallAnswer<CallTools>> {
  const { adapter = null, chatTemplate, toolForm } = options
  const asking = { adapter, chatTemplate, toolForm }
  const known = await session.knownTools(asking)
  const described = tools === undefined ? known : uniqueFunctions(describedTools(tools), 'tools')
  if (described === undefined || described.length === 0) {
    const hint = 'Only adapters that were trained with `toolsInAdapter` know functions'
    throw new ConfigError({ where: 'tools', what: 'there is no function to call', hint })
  }
  const form = callFormNamed(await session.toolForm(asking))
  const isForced = toolChoice === 'required'
  const isBound = isForced || strict
  const isPart = known !== undefined && described.length < known.length
  const functions = described.map(({ name, parameters }) => {
    const schema = isBound && parameters ? checkedSchema(parameters, `tools.${name}.parameters`) : undefined
    return { name, schema: schema && JSON.parse(schema) }
  })
  const structure = isBound || isPart ? callStructure(form, { functions, isForced, isSingle: false }) : undefined
  const offered = described.map((tool) => ({ type: 'function', function: tool }))
  const { text } = await session.generate(messages, { temperature: 0, ...options, tools: offered, structure })
  const reader = new AnswerReader(form, described)
  reader.end(text)
  const answer = {
    calls: [] as { name: string; arguments: never }[],
    invalid: [] as CallAnswer<CallTools>['invalid'][number][],
  }
  for (const {
    function: { name, arguments: json },
  } of reader.calls) {
    const problem = callProblem(name, json, described)
    const checked =
      problem === undefined ? await checkedBy(schemaOf(tools, name), JSON.parse(json || '{}')) : { problem }
    if ('problem' in checked) answer.invalid.push({ name, arguments: json, problem: checked.problem })
    else answer.calls.push({ name, arguments: checked.value as never })
  }
  return { ...answer, text: reader.content }
}

function describedTools(tools: CallTools): readonly unknown[] {
  if (isList(tools)) return tools
  return Object.entries(tools).map(([name, { description, parameters }]): FunctionTool => {
    const schema = isStandard(parameters) ? jsonSchemaOf(parameters, name) : parameters
    return { name, ...(description !== undefined && { description }), ...(schema && { parameters: schema }) }
  })
}

const isStandard = (schema: unknown): schema is StandardSchema =>
  (isObject(schema) || typeof schema === 'function') && '~standard' in schema

function schemaOf(tools: CallTools | undefined, name: string): StandardSchema | undefined {
  const { parameters } = isList(tools) ? {} : (tools?.[name] ?? {})
  return isStandard(parameters) ? parameters : undefined
}

/** @throws ConfigError for a schema that says nothing of JSON, such as zod's before 4.2 */
export function jsonSchemaOf(schema: StandardSchema, name: string): Readonly<Record<string, unknown>> {
  const { jsonSchema, vendor } = schema['~standard']
  if (jsonSchema !== undefined) return jsonSchema.input({ target: 'draft-2020-12' })
  throw new ConfigError({
    where: `tools.${name}.parameters`,
    what: `this schema of ${vendor} does not tell its JSON Schema`,
    expected: 'zod 4.2 or newer, another Standard Schema with jsonSchema, or a JSON Schema',
    hint: 'Give its JSON Schema, such as z.toJSONSchema(schema)',
  })
}

async function checkedBy(
  schema: StandardSchema | undefined,
  args: unknown,
): Promise<{ value: unknown } | { problem: string }> {
  const result = schema === undefined ? { value: args } : await schema['~standard'].validate(args)
  if (!('issues' in result) || result.issues === undefined) return { value: (result as { value: unknown }).value }
  const problems = result.issues.map(({ message, path = [] }) => {
    const place = path.map((step) => String(isObject(step) ? step.key : step)).join('.')
    return place === '' ? message : `${place}: ${message}`
  })
  return { problem: problems.join('; ') }
}
