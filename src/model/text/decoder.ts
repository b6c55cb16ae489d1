// Decodes token ids with @huggingface/tokenizers: all at once, or token by token.

import * as hub from '@huggingface/tokenizers'
import { FormatError, LowrankError, messageOf } from '../../core/base/errors.js'

export interface DecodingLibrary {
  decode(ids: number[], options: { skip_special_tokens: boolean; clean_up_tokenization_spaces: boolean }): string
}
type Files = Readonly<Record<string, unknown>>

/** The parts of tokenizer.json and tokenizer_config.json that decoding needs: plain data, for another thread. */
export interface DecoderFiles {
  readonly definition: Files
  readonly config: Files
  /** The folder of the tokenizer, for messages. */
  readonly name: string
}

/** Decodes a text token by token. Each call returns the new characters. */
export interface TextStream {
  /** Holds back characters whose bytes are still incomplete. */
  push(id: number): string
  /** Returns the rest. Incomplete characters become U+FFFD. */
  end(): string
}

/** Leaves out what only encoding needs: the library takes most of its time and memory for the ranks of merges. */
export function decoderFiles({ definition, config, name }: DecoderFiles): DecoderFiles {
  const { decoder, added_tokens, model } = definition as { [part: string]: object }
  const bare = { ...model, ...('merges' in model && { merges: [] }) }
  const unused = { normalizer: null, pre_tokenizer: null, post_processor: null }
  return { definition: { ...unused, decoder, added_tokens, model: bare }, config, name }
}

export class TokenDecoder {
  readonly #where: string
  readonly #cleansUp: boolean

  constructor(
    private readonly library: DecodingLibrary,
    { config, name }: Pick<DecoderFiles, 'config' | 'name'>,
  ) {
    this.#where = `${name}/tokenizer.json`
    // transformers 5 cleans up spaces only if the file asks for it. The library still has the older default.
    this.#cleansUp = config.clean_up_tokenization_spaces === true
  }

  static open(files: DecoderFiles): TokenDecoder {
    const Library = hub.Tokenizer as unknown as new (definition: object, config: object) => DecodingLibrary
    return new TokenDecoder(new Library(files.definition, files.config), files)
  }

  decode(ids: readonly number[], { skipsSpecial = true, cleansUp = this.#cleansUp } = {}): string {
    if (ids.length === 0) return ''
    const options = { skip_special_tokens: skipsSpecial, clean_up_tokenization_spaces: cleansUp }
    return asked(this.#where, () => {
      const text: unknown = this.library.decode([...ids], options)
      if (typeof text !== 'string') throw new TypeError('decoding gives no text')
      return text
    })
  }

  /**
   * @param after ids of the tokens before, whose text can change the first characters of the new one
   * @param kept special tokens that belong to the text
   */
  stream(after: readonly number[] = [], kept: readonly number[] = []): TextStream {
    return new WindowedStream((ids) => this.#decodeKept(ids, kept), after)
  }

  #decodeKept(ids: readonly number[], kept: readonly number[]): string {
    const at = ids.findIndex((id) => kept.includes(id))
    if (at < 0) return this.decode(ids)
    const mark = this.decode([ids[at]], { skipsSpecial: false })
    return this.decode(ids.slice(0, at)) + mark + this.#decodeKept(ids.slice(at + 1), kept)
  }
}

/** Runs `question`. An error of the library means that it cannot work with this tokenizer.json. */
export function asked<T>(where: string, question: () => T): T {
  try {
    return question()
  } catch (cause) {
    if (cause instanceof LowrankError) throw cause
    throw new FormatError({ where, what: `this tokenizer cannot be used (${messageOf(cause)})`, cause })
  }
}

/**
 * Decodes a growing list of tokens through a window: the tokens whose text is still incomplete, and the tokens just
 * before them, because decoders treat the first token of a text differently.
 */
class WindowedStream implements TextStream {
  #window: number[]
  #done: number

  constructor(
    private readonly decode: (ids: readonly number[]) => string,
    after: readonly number[],
  ) {
    this.#window = [...after]
    this.#done = after.length
  }

  push(id: number): string {
    this.#window.push(id)
    const before = this.decode(this.#window.slice(0, this.#done))
    const now = this.decode(this.#window)
    if (now.endsWith('\ufffd') || !now.startsWith(before)) return ''
    this.#window = this.#window.slice(this.#done)
    this.#done = this.#window.length
    return now.slice(before.length)
  }

  end(): string {
    const before = this.decode(this.#window.slice(0, this.#done))
    const rest = this.decode(this.#window).slice(before.length)
    this.#window = []
    this.#done = 0
    return rest
  }
}
