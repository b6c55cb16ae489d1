// How texts are written with the graphs of a model: plain data, for the thread that runs them.

import type { CacheEntry } from '../../graph/inputs/cache.js'
import type { RoleInput } from '../../graph/inputs/roles.js'
import type { TensorType } from '../../runtime/runtime.js'

/** On which side rows are filled up; `none`: rows of one batch have prompts of one length. */
export type Padding = 'left' | 'right' | 'none'

export interface TextForm {
  readonly role: string
  readonly roles: readonly RoleInput[]
  readonly cache: readonly CacheEntry[]
  readonly logits: string
  /** The side for prompts. */
  readonly padding: Padding
  /** Texts of several calls can share its runs. */
  readonly shares: boolean
  /** It can read a prompt in several runs. */
  readonly takesPieces: boolean
  /** Bytes of a token in the cache. */
  readonly tokenBytes: number
  readonly weightBytes: number
  /** Lengths of long RoPE: see `rotarySwitches`. Empty for most graphs. */
  readonly switches: readonly number[]
  readonly encoder: EncoderForm | undefined
  /** The graph that gives vectors, which the decoder reads in the place of tokens. */
  readonly embedding: EmbeddingForm | undefined
}

/** A graph of tokens beside the decoder. */
interface SideForm {
  readonly role: string
  readonly roles: readonly RoleInput[]
  readonly padTokenId: number
}

export interface EncoderForm extends SideForm {
  /** Inputs of the decoder that it feeds. */
  readonly states: readonly string[]
  /** The first tokens of the decoder. */
  readonly startIds: readonly number[]
}

export interface EmbeddingForm extends SideForm {
  /** The decoder's type of vectors. */
  readonly type: TensorType
  /** The decoder gets positions, on which pictures can lie on a grid. */
  readonly takesPositions: boolean
}
