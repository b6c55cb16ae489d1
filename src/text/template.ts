// A chat template: messages → text.

import type { Span } from './added-tokens.js'
import type { MessageOfParts } from './chat.js'

/** The template of a list that is used, unless a chat has tools and there is one for them. */
export const DEFAULT_TEMPLATE = 'default'

/** The values that a chat is rendered with, beside its messages. */
export interface RenderOptions {
  /** The text goes on to where the model's answer begins. Default false. */
  readonly addGenerationPrompt?: boolean
  /** Descriptions of the functions that the model may call (JSON Schema). */
  readonly tools?: readonly unknown[] | undefined
  /** Further variables of the template, such as `enable_thinking`. */
  readonly args?: Readonly<Record<string, unknown>> | undefined
}

/** A chat as text. */
export interface RenderedChat {
  readonly text: string
  /** The parts that the template itself marks as the model's, by `{% generation %}`; empty where it marks nothing. */
  readonly generated: readonly Span[]
}

/** Renders the chats of one model. */
export interface ChatTemplate {
  /** For messages: the file it came from. */
  readonly name: string
  /** The template itself; of several the one for chats without tools. */
  readonly text: string
  /** It marks what the model writes. */
  readonly marksGeneration: boolean
  /**
   * Renders messages.
   *
   * @param where the record that they come from, for messages
   * @throws DataError when the template refuses them or fails
   */
  render(messages: readonly MessageOfParts[], options: RenderOptions, where: string): RenderedChat
}

export interface TemplateSource {
  readonly name: string
  readonly texts: ReadonlyMap<string, string>
  readonly specialTokens: Readonly<Record<string, string>>
}
