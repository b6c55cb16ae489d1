// Chats with places for pictures, in the form that the chat template reads: parts, or texts with the picture's token.

import { attempt } from '../../core/base/errors.js'
import type { MessageOfParts, MessagePart } from '../text/chat.js'
import type { ChatTemplate, RenderOptions } from '../text/template.js'

type Messages = readonly MessageOfParts[]

const PROBED = 'qztextqz'

export function messageForm(
  template: ChatTemplate,
  args: RenderOptions['args'],
  place: string,
): (messages: Messages) => Messages {
  const probe: MessagePart[] = [{ type: 'image' }, { type: 'text', text: PROBED }]
  const probed = () => template.render([{ role: 'user', content: probe }], { args }, 'places of pictures').text
  const { value: text = '' } = attempt(probed)
  const readsParts = text.includes(place) && text.includes(PROBED)
  const write = readsParts ? partsOf : (content: Content) => textOf(content, place)
  return (messages) =>
    messages.map((message) => {
      return message.content === undefined ? message : { ...message, content: write(message.content) }
    })
}

/**
 * Adds a place for each picture before the text of the user's first or last message, unless messages have places or the
 * text `place`.
 */
export function withPlaces(messages: Messages, pictures: number, question: 'first' | 'last', place?: string): Messages {
  const hasPlace = ({ content = '' }: MessageOfParts) => {
    if (typeof content !== 'string') return content.some(({ type }) => type === 'image')
    return place !== undefined && content.includes(place)
  }
  if (pictures === 0 || messages.some(hasPlace)) return messages
  const isQuestion = ({ role }: MessageOfParts) => role === 'user'
  const asked = question === 'first' ? messages.findIndex(isQuestion) : messages.findLastIndex(isQuestion)
  const places = Array.from({ length: pictures }, (): MessagePart => ({ type: 'image' }))
  return messages.map((message, i) => {
    return i === asked ? { ...message, content: [...places, ...partsOf(message.content ?? '')] } : message
  })
}

type Content = NonNullable<MessageOfParts['content']>

function partsOf(content: Content): readonly MessagePart[] {
  return typeof content === 'string' ? [{ type: 'text', text: content }] : content
}

function textOf(content: Content, place: string): string {
  if (typeof content === 'string') return content
  return content.map((part) => (part.type === 'text' ? part.text : `${place}\n`)).join('')
}
