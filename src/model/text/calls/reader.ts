// Reads a text that a model writes as an answer: words, and calls of functions. What is no call counts as words.

import type { CallForm } from './call.js'
import type { FunctionTool, Reading } from './growing-text.js'
import { GrowingText, held } from './growing-text.js'

/** A call, as OpenAI's answers hold it. `arguments` is JSON. */
export interface ToolCall {
  readonly id: string
  readonly type: 'function'
  readonly function: { readonly name: string; readonly arguments: string }
}

/** The new part of a growing answer. A call comes first with its name, and then with parts of its arguments. */
export type AnswerPart =
  | { readonly type: 'text'; readonly text: string }
  | { readonly type: 'call'; readonly index: number; readonly id: string; readonly name: string }
  | { readonly type: 'arguments'; readonly index: number; readonly text: string }

/** Reads an answer while it grows. */
export class AnswerReader {
  content = ''
  /** The calls of the answer. The arguments of the last one may still grow. */
  readonly calls: { id: string; type: 'function'; function: { name: string; arguments: string } }[] = []
  readonly #text = new GrowingText()
  readonly #reading: Reading<void>
  #length = 0
  /** Spaces after the words. They are left out before a call, and at the end of an answer with calls. */
  #spaces = ''
  /** How many calls were found, even those above `most`. */
  #found = 0
  #parts: AnswerPart[] = []

  /**
   * @param form how the model writes calls. Undefined: the answer is words
   * @param most the largest number of calls. Later ones are left out
   */
  constructor(
    form: CallForm | undefined,
    private readonly tools: readonly FunctionTool[] = [],
    private readonly most = Number.POSITIVE_INFINITY,
  ) {
    this.#reading = form === undefined ? this.#readWords() : this.#readAnswer(form)
  }

  /** Returns what is new and certain with the next piece. */
  read(piece: string, hasEnded = false): AnswerPart[] {
    this.#length += piece.length
    this.#parts = []
    this.#text.add(piece)
    this.#text.hasEnded = hasEnded
    this.#reading.next()
    if (hasEnded && this.calls.length === 0) this.#say(this.#spaces)
    return this.#parts
  }

  /** Returns the rest of the answer, whose whole text is `text`. */
  end(text: string): AnswerPart[] {
    return this.read(text.slice(this.#length), true)
  }

  *#readWords(): Reading<void> {
    for (;;) {
      this.#say(this.#text.rest)
      this.#text.at = this.#text.text.length
      this.#text.drop()
      if (this.#text.hasEnded) return
      yield
    }
  }

  *#readAnswer(form: CallForm): Reading<void> {
    const text = this.#text
    const sink = {
      tools: this.tools,
      start: (name: string) => this.#call(name),
      argue: (json: string) => this.#argue(json),
    }
    if (form.opens.length === 0 && !(yield* form.read(text, sink, ''))) text.at = 0
    const opens = [...form.opens]
    for (;;) {
      text.drop()
      const [at, opened] = opens.reduce<[number, string]>(
        (first, open) => {
          const found = text.text.indexOf(open)
          return found >= 0 && found < first[0] ? [found, open] : first
        },
        [Number.POSITIVE_INFINITY, ''],
      )
      const waiting = text.hasEnded ? 0 : Math.max(0, ...opens.map((open) => held(text.text, open)))
      text.at = Math.min(at, text.text.length - waiting)
      this.#sayWords(text.text.slice(0, text.at))
      text.drop()
      if (opened !== '') {
        text.at = opened.length
        if (yield* form.read(text, sink, opened)) continue
        text.at = opened.length
        this.#sayWords(opened)
      } else if (text.hasEnded) return
      else yield
    }
  }

  #sayWords(text: string): void {
    const words = text.trimEnd()
    if (words !== '') {
      this.#say(this.#spaces + words)
      this.#spaces = ''
    }
    this.#spaces += text.slice(words.length)
  }

  #say(text: string): void {
    if (text === '') return
    this.content += text
    this.#parts.push({ type: 'text', text })
  }

  #call(name: string): void {
    this.#found++
    if (this.#found > this.most) return
    const id = `call_${crypto.randomUUID()}`
    this.#parts.push({ type: 'call', index: this.calls.length, id, name })
    this.calls.push({ id, type: 'function', function: { name, arguments: '' } })
  }

  #argue(text: string): void {
    const index = this.#found - 1
    if (text === '' || index >= this.most) return
    this.calls[index].function.arguments += text
    this.#parts.push({ type: 'arguments', index, text })
  }
}
