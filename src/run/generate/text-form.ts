// Describes, as plain data for the engine's thread, how texts are written with the graphs of a model.

import type { CacheEntry } from '../../model/inputs/cache.js'
import type { RoleInput } from '../../model/inputs/roles.js'
import type { TensorType } from '../../onnx/runtime/runtime.js'

/** The side on which shorter rows are padded. `none`: all prompts of a batch must have the same length. */
export type Padding = 'left' | 'right' | 'none'

export interface TextForm {
  readonly role: string
  readonly roles: readonly RoleInput[]
  readonly cache: readonly CacheEntry[]
  readonly logits: string
  /** The side on which prompts are padded. */
  readonly padding: Padding
  /** The side on which caches are padded if texts share steps of one token. */
  readonly cachePadding: Padding
  /** True if it has states, as of convolutions and linear attention, which cannot be cut to fewer tokens. */
  readonly hasStates: boolean
  /** True if texts of several calls can run together. */
  readonly shares: boolean
  /** True if a prompt can be read in several runs. */
  readonly takesPieces: boolean
  /** The bytes of a token in the cache, and of the states of a text. */
  readonly tokenBytes: number
  readonly stateBytes: number
  readonly weightBytes: number
  /** Lengths of long RoPE: see `rotarySwitches`. Empty for most graphs. */
  readonly switches: readonly number[]
  readonly encoder: EncoderForm | undefined
  /** The graph that makes vectors from tokens, if the decoder reads vectors. */
  readonly embedding: EmbeddingForm | undefined
}

/** A graph that reads tokens and feeds the decoder. */
interface SideForm {
  readonly role: string
  readonly roles: readonly RoleInput[]
  readonly padTokenId: number
}

export interface EncoderForm extends SideForm {
  /** The inputs of the decoder that the encoder feeds. */
  readonly states: readonly string[]
  /** The tokens that the decoder starts with. */
  readonly startIds: readonly number[]
}

export interface EmbeddingForm extends SideForm {
  /** The decoder's inputs that this graph feeds, vectors first. Gemma 3n and Gemma 4 have inputs for each layer too. */
  readonly fed: readonly { readonly name: string; readonly type: TensorType }[]
  /** True if the decoder takes positions, which place the tokens of a picture on a grid. */
  readonly takesPositions: boolean
}
