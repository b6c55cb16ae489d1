// The interface of a chat template, which renders messages as text.

import type { Span } from './added-tokens.js'
import type { CallForm } from './calls/call.js'
import type { FunctionTool } from './calls/growing-text.js'
import type { MessageOfParts } from './chat.js'

/** If a model lists several templates, this name is used, unless the chat has tools and a template for tools exists. */
export const DEFAULT_TEMPLATE = 'default'

export interface RenderOptions {
  /** Adds the text that comes before the model's next answer. Default false. */
  readonly addGenerationPrompt?: boolean
  /** Descriptions of the functions that the model may call (JSON Schema). */
  readonly tools?: readonly unknown[] | undefined
  /** More variables of the template, such as `enable_thinking`. */
  readonly args?: Readonly<Record<string, unknown>> | undefined
}

export interface RenderedChat {
  readonly text: string
  /** The parts that the template marks as written by the model, with `{% generation %}`. Empty if it has no marks. */
  readonly generated: readonly Span[]
}

/** A template that writes what its source says. */
export interface PlainTemplate {
  /** The file that it came from, for error messages. */
  readonly name: string
  /** The template's source. If there are several, that of the template for chats without tools. */
  readonly text: string
  /** True if it marks what the model writes. */
  readonly marksGeneration: boolean
  /**
   * Renders messages.
   *
   * @param where the record that they come from, for error messages
   * @throws DataError if the template refuses them or fails
   */
  render(messages: readonly MessageOfParts[], options: RenderOptions, where: string): RenderedChat
}

/** A template that gives tools, calls and results a place even if its source has none. */
export interface ChatTemplate extends PlainTemplate {
  /** How it asks for calls of functions. */
  readonly calls: CallForm
  /** The functions that it knows without declarations, from training with `toolsInAdapter`. */
  readonly knownTools?: readonly FunctionTool[] | undefined
}

export interface TemplateSource {
  readonly name: string
  readonly texts: ReadonlyMap<string, string>
  readonly specialTokens: Readonly<Record<string, string>>
}
