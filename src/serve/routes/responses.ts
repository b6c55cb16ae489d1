// /v1/responses: a response goes on after an earlier one, may leave early messages out, and is kept.

import { jsonResponse } from '../bodies/pieces.js'
import type { Fields } from '../fields.js'
import { itemsOf, RESPONSES } from '../forms/responses.js'
import { invalid } from '../http.js'
import type { Call } from '../route.js'
import type { Serving } from '../serving.js'
import { shortened } from '../shortened.js'
import { encodeAsked, encodeChat, textsIn } from './texts.js'

/** As many as the messages of a chat. */
const MAX_ITEMS = 4096

const answered = textsIn(RESPONSES, {
  async shorten(serving, call, asked) {
    if (call.fields.truncation !== 'auto') return asked
    return shortened(serving.session.model, asked, (shorter) => encodeAsked(serving, call, shorter))
  },
  async keep({ responses }, { fields, caller }, answer) {
    if (fields.store !== false) responses.keep(caller, itemsOf(fields.input), answer as Fields)
  },
})

export function respond(serving: Serving, call: Call): Promise<Response> {
  return answered(serving, Object.assign(call, { fields: withEarlier(serving, call) }))
}

export async function countInput(serving: Serving, call: Call): Promise<Response> {
  const { length } = await encodeChat(serving, { ...call, fields: withEarlier(serving, call) }, RESPONSES.read)
  return jsonResponse({ object: 'response.input_tokens', input_tokens: length })
}

export function keptResponse({ responses }: Serving, { id, caller }: Call): Response {
  return jsonResponse(responses.get(id, caller).answer)
}

export function removeResponse({ responses }: Serving, { id, caller }: Call): Response {
  return jsonResponse(responses.remove(id, caller))
}

/** Puts the items of an earlier response before the input, and items in the place of their ids. */
function withEarlier({ responses }: Serving, { fields, caller }: Call): Fields {
  const { previous_response_id: previous, input } = fields
  const items = itemsOf(input).map((item, i) => {
    const { type, id, role } = item
    const isId = type === 'item_reference' || (type === undefined && role === undefined && typeof id === 'string')
    return isId ? responses.item(String(id), caller, `input[${i}]`) : item
  })
  const earlier = previous === undefined ? [] : responses.get(previous as string, caller, 'previous_response_id').items
  const all = [...earlier, ...items]
  if (all.length > MAX_ITEMS) throw invalid('previous_response_id', `the conversation has more than ${MAX_ITEMS} items`)
  return { ...fields, input: all }
}
