// Records of the tasks in which the model writes the texts: prompts, with all other fields for those that judge.

import { DataError } from '../../core/base/errors.js'
import { isObject, objectOf, pickFields } from '../../core/base/options.js'
import { CHAT_FIELDS, type MessageOfParts, withSystem } from '../../model/text/chat.js'
import { checkFields, fieldsOf } from '../../model/text/records.js'
import type { Prompt } from '../../run/session.js'
import { causalLm } from '../tasks/causal-lm.js'
import type { Encoded, Task } from '../tasks/task.js'
import type { RewardInput } from './graders/rewards.js'

export interface PromptRow extends Pick<RewardInput, 'messages' | 'answer' | 'row'> {
  readonly prompt: Prompt
  readonly text: string
}

/** What such tasks have in common. Which of a record's fields are read, rewards know alone. */
export const PROMPTS = {
  peftType: causalLm.peftType,
  use: causalLm.use,
  records: [
    { prompt: 'The sea' },
    { question: 'How was the sea?' },
    { messages: [{ role: 'user', content: 'How was the sea?' }] },
  ],
  writesTexts: true,
  reads: Object.keys,
  parse: promptOf,
  encode: (row: PromptRow): Encoded<PromptRow> => ({ examples: [row], isTruncated: false }),
} satisfies Partial<Task<PromptRow, PromptRow>>

/**
 * Reads a record with `prompt`, `question` or `messages`. A question is a chat of one message. If messages end with an
 * answer, it is the wanted one.
 */
export function promptOf(row: unknown, where: string): PromptRow {
  const record = objectOf(row)
  checkFields(pickFields(record, CHAT_FIELDS), ['system'], where)
  const { question, messages = typeof question === 'string' ? [{ role: 'user', content: question }] : undefined } =
    record
  const { prompt = messages } = record
  const given = [record.answer, record.completion, record.solution].find((value) => /string|number/.test(typeof value))
  const wanted = given === undefined ? undefined : String(given)
  if (typeof prompt === 'string' && prompt !== '') {
    checkFields(pickFields(record, CHAT_FIELDS), [], where)
    return { prompt, text: prompt, messages: undefined, answer: wanted, row: record }
  }
  const isChat = Array.isArray(prompt) && prompt.length > 0 && prompt.every(isObject)
  if (!isChat) {
    throw new DataError({
      where,
      what: 'no prompt to answer',
      expected: '"prompt" as a text or a list of messages, "question", or "messages"',
      got: fieldsOf(row),
    })
  }
  const all = withSystem({ given: prompt, answers: [] }, record.system, where).given as MessageOfParts[]
  const isAnswered = all[all.length - 1].role === 'assistant'
  const asked = isAnswered ? all.slice(0, -1) : all
  const answer = wanted ?? (isAnswered ? all[all.length - 1].content : undefined)
  const text = String(asked[asked.length - 1]?.content ?? '')
  return { prompt: asked, text, messages: asked, answer: answer as string | undefined, row: record }
}
