// Leaves early messages out of a chat that is too long for the context, in the units in which they belong together.

import type { MessageOfParts, Model } from '../api/index.js'
import { ContextError } from '../core/base/errors.js'
import type { TextRequest } from './forms/form.js'

/** The share of the context that stays free for an answer of any length. */
const ROOM = 0.25

/**
 * Leaves out as few of the earliest messages as possible. The messages of the system, the last one of the user, and the
 * last of all stay. A question goes with its answers, and a call with its results.
 *
 * @param encode gives the tokens of a request, or throws ContextError
 */
export async function shortened(
  { tokenizer, contextLength }: Model,
  request: TextRequest,
  encode: (request: TextRequest) => Promise<readonly number[]>,
): Promise<TextRequest> {
  if (contextLength === undefined || tokenizer === undefined) return request
  const most = contextLength - Math.ceil(Math.min(request.options.maxNewTokens!, ROOM * contextLength))
  const messages = request.prompts[0] as readonly MessageOfParts[]
  const units = unitsOf(messages)
  // Without the words of the template, so that as a whole only as much is encoded as may fit.
  let [first, tokens] = [units.length, 0]
  while (first > 0 && tokens <= most) {
    for (const message of units[--first]) {
      const { length } = JSON.stringify(message)
      // A token has rarely more than ten characters.
      tokens += length > 10 * most ? most + 1 : tokenizer.encode(JSON.stringify(message)).length
    }
  }
  const without = (count: number): TextRequest => {
    const left = new Set(units.slice(0, count).flat())
    const pictures = [...left].flatMap(({ content }) => (Array.isArray(content) ? content : []))
    const images = (request.options.images as readonly Uint8Array[] | undefined)?.slice(
      pictures.filter(({ type }) => type === 'image').length,
    )
    const kept = messages.filter((message) => !left.has(message))
    return { ...request, prompts: [kept], options: { ...request.options, ...(images && { images }) } }
  }
  const fits = async (count: number) => {
    try {
      return (await encode(without(count))).length <= most
    } catch (error) {
      if (error instanceof ContextError) return false
      throw error
    }
  }
  let last = units.length
  while (first < last) {
    const middle = Math.floor((first + last) / 2)
    if (await fits(middle)) last = middle
    else first = middle + 1
  }
  return without(last)
}

/** The messages that may go, the earliest first. */
function unitsOf(messages: readonly MessageOfParts[]): MessageOfParts[][] {
  const question = messages.findLastIndex(({ role }) => role === 'user')
  const units: MessageOfParts[][] = []
  for (const [i, message] of messages.entries()) {
    const { role } = message
    if (role === 'system' || role === 'developer' || i === question) continue
    if (role === 'user' || (i > question && role === 'assistant') || units.length === 0) units.push([])
    units.at(-1)!.push(message)
  }
  return messages.length - 1 === question ? units : units.slice(0, -1)
}
