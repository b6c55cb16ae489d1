// Facts about types of models, written by hand: a file per family in this folder, which scripts/generate/families.mjs
// joins in gen/types.ts. Tables that scripts make from transformers, PEFT or llama.cpp are elsewhere.

/** Types of models by the `model_type` of their config.json. */
export type ModelTypes = Readonly<Record<string, ModelType>>

/** How a family differs from most models. Names of modules are endings, such as `mlp.down_proj`. */
export interface ModelType {
  /** Rules from names of older versions of transformers to today's, applied one after the other. */
  readonly spellings?: readonly Spelling[]
  /** Names of onnxruntime-genai → names of transformers. */
  readonly exported?: Readonly<Record<string, string>>
  /** Modules of transformers that a graph may split, with their parts in order. */
  readonly packed?: Readonly<Record<string, readonly string[]>>
  /** The module, and its layers in order that ONNX Runtime's optimizer packs into an Attention. */
  readonly attention?: readonly [module: RegExp, names: readonly string[]]
  /** Modules of transformers' class Conv1D, which stores the weight as (k, d). */
  readonly conv1d?: RegExp
  /** True if stacked experts are stored as (E, k, d): `is_transposed` in transformers' conversion_mapping.py. */
  readonly hasInputMajorExperts?: boolean
  /** True if the rows of gate and up alternate in `gate_up_proj`. Otherwise all rows of gate come first. */
  readonly hasGateInTurn?: boolean
  /** The two parameters of a layer's experts. Default `mlp.experts.gate_up_proj` and `mlp.experts.down_proj`. */
  readonly experts?: readonly [gateUp: string, down: string]
  /**
   * The number that onnxruntime-genai's builder adds to weights of norms: 1 if norms multiply by 1 + w. Undefined if
   * not known. Source: `add_offset` of
   * https://github.com/microsoft/onnxruntime-genai/tree/main/src/python/py/models/builders
   */
  readonly normOffset?: 0 | 1
  /** True if positions begin after the padding token's id: https://github.com/facebookresearch/fairseq/issues/1187 */
  readonly hasShiftedPositions?: boolean
  /** `tie_word_embeddings` if config.json has none. */
  readonly isTied?: boolean
  /** Whether AutoModel has a pooler, which exports for feature extraction leave out. */
  readonly hasPooler?: boolean
  /** The module of the language model in a model that also reads pictures. Default `language_model`. */
  readonly languageModule?: string
  /** How prompts hold a picture: its tokens alone, between two marks, or as tiles with rows and columns. */
  readonly pictures?: 'alone' | 'between' | 'tiles'
  /** transformers' heads for the model; a function returns undefined for an unknown config. */
  readonly heads?: Readonly<Partial<Record<HeadKind, HeadForm | ((config: Config) => HeadForm | undefined)>>>
}

export type Spelling = readonly [older: RegExp, today: string]

/** The inputs to which a head gives labels: whole texts, the words of a text, or pictures. */
export type HeadKind = 'text' | 'token' | 'image'

export type Config = Readonly<Record<string, unknown>>

/** A layer of a head: y = activation(x·Wᵀ + b), or a norm of x. The last layer makes the logits. */
export interface HeadLayer {
  readonly module: string
  /** The kind of layer. Default `linear`. */
  readonly kind?: 'linear' | 'norm'
  /** False if the layer has no bias. Default true. */
  readonly hasBias?: boolean
  /** The number that a norm adds to the variance. */
  readonly epsilon?: number
  readonly activation?: 'Tanh' | 'Relu' | 'Gelu'
  /** The number of outputs. Default: as many as inputs; for the last layer, as many as labels. */
  readonly width?: number
  /**
   * True if the layer comes before the mean over the rows. A layer without an activation can be moved after the mean,
   * since the result is the same.
   */
  readonly isOfEach?: boolean
}

/**
 * The rows of hidden states (batch, sequence, k) that a head reads: the first token, the last token before padding, the
 * mean over tokens without padding, all tokens, or the first token next to the mean of the others, (batch, 2k).
 */
export type HeadRows = 'first' | 'last' | 'mean' | 'all' | 'first-and-mean'

/** The layers of a head, and how PEFT saves them. */
export interface HeadForm {
  /** transformers' module of the encoder, which names in exports of the encoder alone lack. */
  readonly encoder: string
  readonly rows: HeadRows
  /** The padding token of config.json, for finding the last token. */
  readonly padTokenId?: number | undefined
  /** The layers of the head, from the hidden states to the logits. */
  readonly layers: readonly HeadLayer[]
  /** The modules that PEFT saves whole for this head (modules_to_save). */
  readonly modulesToSave: readonly string[]
  /** transformers' class of the model with this head, if PEFT's task_type does not imply it. */
  readonly architecture?: string
}
