// Facts about types of models that people write by hand. Each file beside this one has the types of one family, and
// scripts/generate/families.mjs joins them to gen/types.ts. Tables that scripts read from transformers, PEFT or
// llama.cpp are elsewhere.

/** Keys are those of `model_type` in config.json. */
export type ModelTypes = Readonly<Record<string, ModelType>>

/** Only what differs from most models. Names of modules are the last parts of whole names: `mlp.down_proj`. */
export interface ModelType {
  /** Names that older versions of transformers give to modules, and today's. Each rule gets what the last one made. */
  readonly spellings?: readonly Spelling[]
  /** Names that onnxruntime-genai gives to modules, and those of transformers. */
  readonly exported?: Readonly<Record<string, string>>
  /** Modules of transformers that a graph may have as several, with those in order. */
  readonly packed?: Readonly<Record<string, readonly string[]>>
  /** The layers that ONNX Runtime's optimizer packs into one Attention, by the module that they are in. */
  readonly attention?: readonly [module: RegExp, names: readonly string[]]
  /** Modules that are transformers' Conv1D, whose weight is stored (k, d). */
  readonly conv1d?: RegExp
  /** Stacked experts are stored (E, k, d): `is_transposed` in transformers' conversion_mapping.py. */
  readonly hasInputMajorExperts?: boolean
  /**
   * The number that onnxruntime-genai's builder adds to the weights of norms, 1 if norms multiply by 1 + w. Without it,
   * nobody has looked. Source: `add_offset` of
   * https://github.com/microsoft/onnxruntime-genai/tree/main/src/python/py/models/builders
   */
  readonly normOffset?: 0 | 1
  /** Positions begin after that of padding: https://github.com/facebookresearch/fairseq/issues/1187 */
  readonly hasShiftedPositions?: boolean
  /** `tie_word_embeddings` if config.json does not say it. */
  readonly isTied?: boolean
  /** AutoModel has a pooler, which exports that give the vectors of tokens leave out. */
  readonly hasPooler?: boolean
  /** The module that holds the language model, in a model that also reads pictures. Default `language_model`. */
  readonly languageModule?: string
  /** The text in the place of a picture: tokens alone, tokens between two marks, or tiles with row and column. */
  readonly pictures?: 'alone' | 'between' | 'tiles'
  /** The heads that transformers puts on the model; undefined if the config asks for what is not known here. */
  readonly heads?: Readonly<Partial<Record<HeadKind, HeadForm | ((config: Config) => HeadForm | undefined)>>>
}

export type Spelling = readonly [older: RegExp, today: string]

/** Labels of whole texts, of each word, of pictures, of sounds. */
export type HeadKind = 'text' | 'token' | 'image' | 'audio'

export type Config = Readonly<Record<string, unknown>>

/** A layer of a head: y = activation(x·Wᵀ + b), or the norm of x. The last one gives the logits. */
export interface HeadLayer {
  readonly module: string
  /** Default `linear`. */
  readonly kind?: 'linear' | 'norm'
  /** Default true. */
  readonly hasBias?: boolean
  /** The small number that a norm adds to the variance. */
  readonly epsilon?: number
  readonly activation?: 'Tanh' | 'Relu' | 'Gelu'
  /** How many outputs it has. Default: as many as inputs, and for the last one as many as labels. */
  readonly width?: number
  /**
   * transformers computes it for each row, before the mean over them. A layer without an activation may as well follow
   * the mean.
   */
  readonly isOfEach?: boolean
}

/**
 * The rows of hidden states (batch, sequence, k) that a head computes with: that of the first token, of the last token
 * that is no padding, the mean over those that are none, that of each token, or the first one beside the mean of the
 * others, (batch, 2k).
 */
export type HeadRows = 'first' | 'last' | 'mean' | 'all' | 'first-and-mean'

/** The layers of a head, and how PEFT saves them. */
export interface HeadForm {
  /** How transformers calls the encoder: exports of the encoder alone lack this first part of the names. */
  readonly encoder: string
  readonly rows: HeadRows
  /** The token that config.json names for padding: in front of it is the last row. */
  readonly padTokenId?: number | undefined
  /** From the hidden states on. */
  readonly layers: readonly HeadLayer[]
  /** Modules that PEFT is told to save whole. */
  readonly modulesToSave: readonly string[]
  /** transformers' class of the whole, where PEFT's task_type does not tell it. */
  readonly architecture?: string
}
