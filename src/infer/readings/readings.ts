// The ways of reading what a session gives, as methods: each is in a file of its own, which loads when it is first asked for.

import { generate, streamText, type TextSession } from '../generate/generate.js'
import type {
  Classification,
  ClassifyInput,
  ClassifyOptions,
  EmbedOptions,
  GenerateOptions,
  GenerateResult,
  Prompt,
  StreamOptions,
  Tagging,
  TagOptions,
  TextOrWords,
} from '../session.js'
import type { EmbeddingSession } from './embed.js'
import type { ClassifierSession } from './logits.js'

/** Methods of sessions over whole models. */
export abstract class Readings {
  generate(this: TextSession, prompt: Prompt, options?: GenerateOptions): Promise<GenerateResult>
  generate(this: TextSession, prompts: readonly Prompt[], options?: GenerateOptions): Promise<GenerateResult[]>
  async generate(
    this: TextSession,
    prompts: Prompt | readonly Prompt[],
    options: GenerateOptions = {},
  ): Promise<GenerateResult | GenerateResult[]> {
    return generate(this, prompts, options)
  }

  stream(
    this: TextSession,
    prompt: Prompt,
    options: StreamOptions = {},
  ): AsyncGenerator<string, GenerateResult, undefined> {
    return streamText(this, prompt, options)
  }

  classify(this: ClassifierSession, input: ClassifyInput, options?: ClassifyOptions): Promise<Classification>
  classify(
    this: ClassifierSession,
    inputs: readonly ClassifyInput[],
    options?: ClassifyOptions,
  ): Promise<Classification[]>
  async classify(
    this: ClassifierSession,
    inputs: ClassifyInput | readonly ClassifyInput[],
    options?: ClassifyOptions,
  ): Promise<Classification | Classification[]> {
    const { classify } = await import('./classify.js')
    return classify(this, inputs, options)
  }

  embed(this: EmbeddingSession, text: string, options?: EmbedOptions): Promise<Float32Array>
  embed(this: EmbeddingSession, texts: readonly string[], options?: EmbedOptions): Promise<Float32Array[]>
  async embed(
    this: EmbeddingSession,
    texts: string | readonly string[],
    options?: EmbedOptions,
  ): Promise<Float32Array | Float32Array[]> {
    const { embed } = await import('./embed.js')
    return embed(this, texts, options)
  }

  tag(this: ClassifierSession, text: TextOrWords, options?: TagOptions): Promise<Tagging>
  tag(this: ClassifierSession, texts: readonly TextOrWords[], options?: TagOptions): Promise<Tagging[]>
  async tag(
    this: ClassifierSession,
    texts: TextOrWords | readonly TextOrWords[],
    options?: TagOptions,
  ): Promise<Tagging | Tagging[]> {
    const { tag } = await import('./tag.js')
    return tag(this, texts, options)
  }
}
