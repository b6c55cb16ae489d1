// Requests that calls are measured on: each answer of a chat with tools, with the chat before it.

import { DataError } from '../../core/base/errors.js'
import { objectOf, toJson } from '../../core/base/options.js'
import { type PossibleCall, possibleCalls } from '../../model/text/calls/bfcl.js'
import type { CallForm, FunctionCall } from '../../model/text/calls/call.js'
import { checkCall, type WantedCalls } from '../../model/text/calls/compare.js'
import { callFormNamed, callsIn, functionsOf, uniqueFunctions } from '../../model/text/calls/forms.js'
import { AnswerReader, type ToolCall } from '../../model/text/calls/reader.js'
import { callStructure } from '../../model/text/calls/tags.js'
import { type MessageOfParts, parseChat } from '../../model/text/chat.js'
import { checkedSchema } from '../../run/schemas/schemas.js'
import type { AdapterSession, GenerateOptions } from '../../run/session.js'

export interface CallRequest extends WantedCalls {
  readonly where: string
  readonly messages: readonly MessageOfParts[]
  /** The tools as the record has them. */
  readonly offered: readonly object[]
}

/**
 * @returns none for a record without tools
 * @throws DataError for a call that no function of the record fits
 */
export function callRequests(row: unknown, where: string, known?: readonly object[]): CallRequest[] {
  const { messages, tools: own, learnFrom } = parseChat(objectOf(row), where)
  const offered = (own as readonly object[] | undefined) ?? known
  if (offered === undefined) return []
  const tools = uniqueFunctions(offered, where)
  const answers = answersOf(row, where)
  const requests: CallRequest[] = []
  for (const [i, { role, tool_calls: made = [], weight }] of messages.entries()) {
    if (role !== 'assistant' || weight === 0 || i < learnFrom) continue
    const ofLast = i === messages.length - 1 ? answers : undefined
    const calls = callsIn(made)
    for (const call of calls) checkCall(call, tools, `${where}, message ${i + 1}`)
    requests.push({ where, messages: messages.slice(0, i), offered, tools, calls, answers: ofLast })
  }
  if (answers !== undefined && messages.at(-1)?.role !== 'assistant') {
    requests.push({ where, messages, offered, tools, calls: answers.map(firstOf), answers })
  }
  return requests
}

function answersOf(row: unknown, where: string): readonly PossibleCall[] | undefined {
  const { answers } = objectOf(row)
  const read = answers === undefined || answers === null ? undefined : possibleCalls(answers)
  if (read !== undefined || answers === undefined || answers === null) return read
  const expected = 'a list of { function: { parameter: [possible values] } }'
  throw new DataError({ where, what: '"answers" is not read', expected, got: toJson(answers).slice(0, 200) })
}

function firstOf(answer: PossibleCall): FunctionCall {
  const [[name, values]] = Object.entries(answer)
  const given = Object.entries(values).flatMap(([key, [first]]) =>
    first === '' || first === undefined ? [] : [[key, first]],
  )
  return { name, arguments: Object.fromEntries(given) }
}

/** Keeps calls that a model may make to the schemas of the functions. */
function structureOf(form: CallForm, offered: readonly object[]): object {
  const functions = functionsOf(offered).map(({ name, parameters }, i) => {
    return { name, schema: parameters && JSON.parse(checkedSchema(parameters, `tools[${i}].function.parameters`)) }
  })
  return callStructure(form, { functions, isForced: false, isSingle: false })
}

type Drawing = Pick<GenerateOptions, 'chatTemplate' | 'chatTemplateArgs' | 'batchSize' | 'maxNewTokens' | 'signal'> & {
  readonly adapter: string | null
  /** True if calls are kept to the schemas of the functions. */
  readonly isKept?: boolean
}

/** An answer with its calls. */
export interface DrawnAnswer {
  readonly calls: readonly ToolCall[]
  readonly text: string
  readonly promptTokens: number
}

/** Draws the likeliest answers to requests, as the server does for `tool_choice: 'auto'`. */
export async function drawAnswers(
  session: Pick<AdapterSession, 'generate' | 'toolForm'>,
  requests: readonly CallRequest[],
  { isKept = false, adapter, batchSize = 8, ...options }: Drawing,
  next: () => Promise<void> | void = () => {},
): Promise<DrawnAnswer[]> {
  const { chatTemplate } = options
  const form = callFormNamed(await session.toolForm({ adapter, chatTemplate }))
  const answers: DrawnAnswer[] = []
  for (let from = 0; from < requests.length; ) {
    const { offered, tools } = requests[from]
    const text = JSON.stringify(offered)
    let end = from
    while (end < requests.length && end < from + batchSize && JSON.stringify(requests[end].offered) === text) end++
    const structure = isKept ? structureOf(form, offered) : undefined
    const prompts = requests.slice(from, end).map(({ messages }) => messages)
    const given = { ...options, temperature: 0, batchSize, adapter, tools: offered, structure }
    for (const { text, promptTokens } of await session.generate(prompts, given)) {
      const reader = new AnswerReader(form, tools)
      reader.end(text)
      answers.push({ calls: reader.calls, text: reader.content, promptTokens })
      await next()
    }
    from = end
  }
  return answers
}

export function requireRequests(requests: readonly CallRequest[]): void {
  if (requests.length > 0) return
  throw new DataError({
    where: 'data',
    what: 'no record has tools and an answer',
    expected: 'chats with "messages" and "tools"',
    hint: '`lowrank data tools` makes such records',
  })
}
