// Long answers are written in pieces, between which the server turns to others.

import { nextTurn } from '../../core/base/turns.js'

const PIECE_ROWS = 1000
/** In UTF-8, these are at most 192 KiB. */
const PIECE_CHARACTERS = 1 << 16

/** Joins rows to pieces of at most 1,000 rows or 64 Ki characters. A longer row is a piece of its own. */
export async function* inPieces(rows: Iterable<string>): AsyncGenerator<string, void> {
  let [text, count] = ['', 0]
  for (const row of rows) {
    if (count === PIECE_ROWS || (count > 0 && text.length + row.length > PIECE_CHARACTERS)) {
      yield text
      await nextTurn()
      ;[text, count] = ['', 0]
    }
    text += row
    count++
  }
  if (count > 0) yield text
}

/** The JSON of an object. Each element of its lists is a row. */
function* rowsOf(value: object): Generator<string> {
  let lead = '{'
  for (const [name, member] of Object.entries(value)) {
    if (member === undefined) continue
    const start = `${lead}${JSON.stringify(name)}:`
    lead = ','
    if (Array.isArray(member)) {
      yield `${start}[`
      for (const [i, element] of member.entries()) yield `${i === 0 ? '' : ','}${JSON.stringify(element)}`
      yield ']'
    } else yield start + JSON.stringify(member)
  }
  yield lead === '{' ? '{}' : '}'
}

/** Answers with an object that may have long lists. */
export function jsonResponse(value: object): Response {
  const pieces = inPieces(rowsOf(value))
  const encoder = new TextEncoder()
  const body = new ReadableStream<Uint8Array>(
    {
      async pull(controller) {
        const next = await pieces.next()
        if (next.done) controller.close()
        else controller.enqueue(encoder.encode(next.value))
      },
      cancel: () => void pieces.return(),
    },
    { highWaterMark: 0 },
  )
  return new Response(body, { headers: { 'content-type': 'application/json' } })
}
