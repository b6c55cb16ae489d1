// The pictures of a row of data, in the form of TRL's vision data sets: a list `images` in the order of their places in
// the messages, or each picture in its place.

import { counted, DataError } from '../../../core/base/errors.js'
import type { ImageSource } from '../../../model/images/image.js'
import { isImageSource } from '../../../model/images/image-source.js'
import { withPlaces } from '../../../model/pictures/chat-places.js'
import { type Chat, chatOf, type MessagePart, messageOfParts } from '../../../model/text/chat.js'
import { type ParsedRecord, parseRecord } from '../../../model/text/records.js'

/** A record, with a picture for each place in its messages. */
export type PicturedRecord = ParsedRecord & { readonly images?: readonly ImageSource[] }

export function parsePictured(row: unknown, where: string): PicturedRecord {
  const record = parseRecord(row, where, messageOfParts)
  const { images, image } = row as Readonly<Record<string, unknown>>
  const given = [images ?? image ?? []].flat()
  const isChat = record.kind === 'chat' || record.kind === 'answer'
  if (given.length > 0 && !isChat) {
    throw new DataError({
      where,
      what: 'pictures beside a text',
      expected: '"messages", or "question" and "answer", with "images"',
      got: counted(given.length, 'picture'),
    })
  }
  if (!isChat) return record
  const chat = record.kind === 'chat' ? record.chat : chatOf(record.question, record.answer, record.system)
  // As in TRL, pictures without places go before the text of the first question.
  const messages = withPlaces(chat.messages, given.length, 'first')
  const placed = takePictures({ ...chat, messages }, given, where)
  return placed.images.length === 0 ? record : { where, kind: 'chat', ...placed }
}

function takePictures(chat: Chat, given: readonly unknown[], where: string) {
  const images: unknown[] = []
  let taken = 0
  const take = (part: MessagePart & { readonly image?: unknown }): MessagePart => {
    if (part.type !== 'image') return part
    images.push(part.image ?? given[taken++])
    return { type: 'image' }
  }
  const messages = chat.messages.map((message) => {
    const { content } = message
    return typeof content === 'object' ? { ...message, content: content.map(take) } : message
  })
  if (taken !== given.length) {
    throw new DataError({
      where,
      what: 'the number of its places for pictures is not the number of pictures',
      expected: `${given.length} times { "type": "image" } among the parts of its messages`,
      got: String(taken),
    })
  }
  const wrong = images.findIndex((image) => !isImageSource(image))
  if (wrong < 0) return { chat: { ...chat, messages }, images: images as ImageSource[] }
  throw new DataError({
    where: `${where}, image ${wrong + 1}`,
    what: 'not a picture',
    expected: 'a path, the bytes of a file, or { data, width, height }',
    got: typeof images[wrong],
  })
}
