// LoraAdapter: an ordered map of named parts that share a config. Folders hold it, training returns it, merging and
// sessions take it. Most parts are linear layers. The other kinds cover everything else that PEFT saves.

// The files of src/lora/, in reading order:
//   layer.ts, passes.ts             the formula, forward and backward
//   config.ts, factors.ts, part.ts  what a layer is made from, and what all parts have in common
//   kinds/                          the parts that are not linear layers: embeddings, convolutions, experts, whole tensors
//   init/                           first values of new layers
//   patterns/                       regular expressions of Python, which configs contain
//   peft/                           folders as PEFT writes them

import type { FloatDtype } from '../core/base/dtype.js'
import { ConfigError, didYouMean, MismatchError, StateError } from '../core/base/errors.js'
import type { FloatArray, Matrix, MatrixLike, Tensor } from '../core/base/tensor.js'
import { type LoraConfig, type LoraConfigInput, resolveConfig } from './config.js'
import type { LayerVectors } from './factors.js'
import { ConvolutionLora } from './kinds/convolution.js'
import { EmbeddingLora } from './kinds/embedding.js'
import { ExpertLora } from './kinds/experts.js'
import { Replacement, type ReplacementOptions, type StoredValues, TokenRows } from './kinds/stored.js'
import { LoraLayer } from './layer.js'
import { ADAPTERS, type PartKind, type PartValues, type ProblemType, rowsName } from './part.js'

/** A part of an adapter. Its `kind` says which class it is. */
export type AdapterPart = LoraLayer | EmbeddingLora | ConvolutionLora | ExpertLora | Replacement | TokenRows

/** The class that belongs to a kind. */
export type PartOfKind<Kind extends PartKind> = Extract<AdapterPart, { readonly kind: Kind }>

/** The base model that an adapter was trained on. */
export interface BaseRecord {
  /** Path of the graph in the model's folder. */
  readonly graph: string
  /** A digest of its weights. */
  readonly weights: string
}

/**
 * An adapter: named parts that share a config. Iterates over `[name, part]` in the order in which they were added.
 *
 * @example
 * const adapter = new LoraAdapter({ rank: 2, alpha: 4 })
 * adapter.addLayer('q_proj', baseWeight)
 * const y = adapter.forward('q_proj', x)
 * adapter.mergeAll()
 * for (const [name, part] of adapter) console.log(name, part.kind, part.shape)
 * for (const layer of adapter.parts('linear')) console.log(layer.weightA.shape, layer.weightB.shape)
 */
export class LoraAdapter implements Iterable<[name: string, part: AdapterPart]> {
  /** The settings that all parts share. Each layer also has a config, with that layer's rank and alpha. */
  readonly config: LoraConfig
  /** Unusual things in the folder that the adapter was read from, such as older names of tensors. */
  readonly notes: string[] = []
  /**
   * The chat template (Jinja) that it was trained with, so that it is used with the same template. Undefined if it was
   * not trained on chats.
   */
  chatTemplate: string | undefined
  /** What was put before texts in its training, by their kind: `query` and `document`. */
  prompts: Readonly<Record<string, string>> | undefined
  /** Names of the labels of the classification head. Undefined if there is no head, or if the names are unknown. */
  labels: readonly string[] | undefined
  /** The type of the labels, as in transformers' `problem_type`. Undefined if no file contains it. */
  problemType: ProblemType | undefined
  /** The base that lowrank trained it on, as recorded in its folder. Undefined if lowrank did not train it. */
  trainedOn: BaseRecord | undefined
  readonly #parts = new Map<string, AdapterPart>()

  /** @throws ConfigError or UnsupportedError if the config is not valid. */
  constructor(config: LoraConfigInput = {}) {
    this.config = resolveConfig(config)
    ADAPTERS.add(this)
  }

  /**
   * Adds a new linear layer over a copy of `baseWeight` (d, k), with the rank and alpha that the config's patterns give
   * its name.
   *
   * @throws ConfigError if the name is empty or taken. Also throws whatever {@link LoraLayer}'s constructor throws
   * @example
   * const layer = adapter.addLayer('model.layers.0.self_attn.k_proj', baseWeight)
   */
  addLayer(name: string, baseWeight: MatrixLike): LoraLayer {
    return this.#add(name, () => new LoraLayer(baseWeight, this.config, name))
  }

  /**
   * Adds a new linear layer for a weight (d, k) that is not loaded. Throws as {@link addLayer} and {@link
   * LoraLayer.ofShape} do.
   */
  addLayerOfShape(name: string, shape: readonly [d: number, k: number]): LoraLayer {
    return this.#add(name, () => LoraLayer.ofShape(shape, this.config, name))
  }

  /**
   * Adds a linear layer made from copies of A (r, k) and B (d, r), without a base weight, in evaluation mode.
   *
   * @throws ConfigError if the name is empty or taken, or if vectors and config disagree; ShapeError if r is not the
   *   rank that the config gives this name.
   * @example
   * adapter.addFactors('model.layers.0.mlp.up_proj', [[1, 0, 2], [0, 1, 0]], [[0.5, 0], [0.25, 1]])
   */
  addFactors(name: string, weightA: MatrixLike, weightB: MatrixLike, vectors: LayerVectors = {}): LoraLayer {
    return this.#add(name, () => LoraLayer.fromFactors(weightA, weightB, this.config, name, vectors))
  }

  /** Adds an embedding made from copies of A (r, V) and B (D, r). Throws as {@link addFactors} does. */
  addEmbedding(
    name: string,
    weightA: MatrixLike,
    weightB: MatrixLike,
    vectors: Pick<LayerVectors, 'magnitude'> = {},
  ): EmbeddingLora {
    return this.#add(name, () => new EmbeddingLora(weightA, weightB, this.config, name, vectors))
  }

  /**
   * Adds a convolution made from copies of A (r, in, *kernel) and B (d, r/groups, 1…), in evaluation mode. Throws as
   * {@link addFactors} does.
   */
  addConvolution(
    name: string,
    weightA: Tensor<FloatArray>,
    weightB: Tensor<FloatArray>,
    vectors: LayerVectors = {},
  ): ConvolutionLora {
    return this.#add(name, () => new ConvolutionLora(weightA, weightB, this.config, name, vectors))
  }

  /**
   * Adds a parameter of E experts made from copies of A (E·r, k) and B (d, r·E).
   *
   * @param name the parameter's full name, MODULE.PARAMETER
   * @throws ConfigError if the name is taken, or is not MODULE.PARAMETER; ShapeError if factors and rank disagree
   */
  addExperts(name: string, weightA: MatrixLike, weightB: MatrixLike): ExpertLora {
    return this.#add(name, () => {
      const experts = new ExpertLora(weightA, weightB, this.config, name)
      if (experts.module !== '') return experts
      throw new ConfigError({ where: name, what: 'not the full name of a parameter', expected: 'MODULE.PARAMETER' })
    })
  }

  /**
   * Adds a whole tensor that replaces a tensor of the base, or one that the base does not have, such as a new head. It
   * is saved as PEFT saves `modules_to_save`.
   *
   * @param name the tensor's full name, MODULE.TENSOR, as in `classifier.weight`
   * @param values numbers, which are copied, or the bytes of a file, which are kept
   * @throws ConfigError if the name is taken, or is not MODULE.TENSOR; ShapeError if shape and values disagree
   * @example
   * adapter.addReplacement('classifier.weight', { data: new Float32Array(2 * 768), shape: [2, 768] })
   * adapter.addReplacement('classifier.bias', { data: new Float32Array(2), shape: [2] })
   */
  addReplacement(name: string, values: StoredValues, options: ReplacementOptions = {}): Replacement {
    return this.#add(name, () => {
      const replacement = new Replacement(name, values, options)
      if (replacement.module !== '') return replacement
      throw new ConfigError({ where: name, what: 'not the full name of a tensor', expected: 'MODULE.TENSOR' })
    })
  }

  /**
   * Adds rows (n, D) that replace some rows of an embedding. The part's name is MODULE[tokens], because the embedding
   * can be a part too.
   *
   * @param module the embedding's name, as in `model.embed_tokens`
   * @param indices n different tokens, in the order of the rows
   * @throws ConfigError if the module has rows already, or if a token is not valid or given twice; ShapeError if the
   *   numbers of rows and tokens differ
   * @example
   * adapter.addTokenRows('model.embed_tokens', [31, 7], { data: new Float32Array(2 * 64), shape: [2, 64] })
   */
  addTokenRows(module: string, indices: readonly number[], rows: StoredValues): TokenRows {
    return this.#add(
      typeof module === 'string' && module !== '' ? rowsName(module) : '',
      () => new TokenRows(module, indices, rows),
    )
  }

  /** @internal Adds a part of any kind, made from copies of its values. Throws as the method for that kind does. */
  addPart(part: PartValues): AdapterPart {
    const { name } = part
    if (part.kind === 'replacement') {
      const { isTrained, key } = part
      return this.addReplacement(name, part.tensors.weight, { isTrained, key })
    }
    if (part.kind === 'token-rows') return this.addTokenRows(part.module, part.indices, part.tensors.weight)
    const { weightA, weightB, magnitude, biasB } = part.tensors
    const [a, b] = [weightA, weightB].map(
      ({ data, shape: [rows, columns] }): Matrix => ({ data, shape: [rows, columns] }),
    )
    const vectors = { magnitude: magnitude?.data, biasB: biasB?.data }
    const add = {
      linear: () => this.addFactors(name, a, b, vectors),
      embedding: () => this.addEmbedding(name, a, b, vectors),
      convolution: () => this.addConvolution(name, weightA, weightB, vectors),
      parameter: () => this.addExperts(name, a, b),
    }
    const layer = add[part.kind]()
    if (part.dtype !== undefined) layer.dtype = part.dtype as FloatDtype
    return layer
  }

  /**
   * Removes a part from the adapter, and returns whether it was there. The part itself does not change.
   */
  remove(name: string): boolean {
    return this.#parts.delete(name)
  }

  /** Returns an adapter with the same config that has only the parts of these names. The parts are not copied. */
  only(names: ReadonlySet<string>): LoraAdapter {
    const adapter = new LoraAdapter(this.config)
    adapter.chatTemplate = this.chatTemplate
    adapter.prompts = this.prompts
    adapter.labels = this.labels
    adapter.problemType = this.problemType
    adapter.trainedOn = this.trainedOn
    for (const [name, part] of this.#parts) if (names.has(name)) adapter.#parts.set(name, part)
    return adapter
  }

  /** The number of parts. */
  get size(): number {
    return this.#parts.size
  }

  /** Returns the names of the parts, in their order. */
  names(): string[] {
    return [...this.#parts.keys()]
  }

  /** Says whether there is a part of that name. */
  has(name: string): boolean {
    return this.#parts.has(name)
  }

  /**
   * Returns the part of that name. Returns undefined if there is no such part, or if it is not of the given kind.
   *
   * @example
   * const vocabulary = adapter.get('model.embed_tokens', 'embedding')?.vocabulary
   */
  get(name: string): AdapterPart | undefined
  get<Kind extends PartKind>(name: string, kind: Kind): PartOfKind<Kind> | undefined
  get(name: string, kind?: PartKind): AdapterPart | undefined {
    const part = this.#parts.get(name)
    return kind === undefined || part?.kind === kind ? part : undefined
  }

  /**
   * Returns all parts, or only parts of the given kinds, in their order.
   *
   * @example
   * for (const { name, vocabulary } of adapter.parts('embedding')) console.log(name, vocabulary)
   */
  parts(): AdapterPart[]
  parts<Kind extends PartKind>(...kinds: Kind[]): PartOfKind<Kind>[]
  parts(...kinds: PartKind[]): AdapterPart[] {
    const all = [...this.#parts.values()]
    return kinds.length === 0 ? all : all.filter(({ kind }) => kinds.includes(kind))
  }

  /**
   * Returns the linear layer of that name.
   *
   * @throws MismatchError if there is no such layer
   */
  layer(name: string): LoraLayer {
    const part = this.#parts.get(name)
    if (part?.kind === 'linear') return part
    const names = this.parts('linear').map((layer) => layer.name)
    throw new MismatchError({
      where: name,
      what: 'the adapter has no such layer',
      ...(part !== undefined && { expected: 'a linear layer', got: part.kind }),
      hint: didYouMean(name, names, 3),
    })
  }

  /** Iterates over `[name, part]` of all parts. */
  [Symbol.iterator](): IterableIterator<[string, AdapterPart]> {
    return this.#parts.entries()
  }

  /**
   * Computes (n, d) from (n, k) with the named linear layer. Throws as {@link LoraLayer.forward} and {@link layer} do.
   */
  forward(name: string, input: MatrixLike): Matrix {
    return this.layer(name).forward(input)
  }

  /** Turns on training mode in all linear layers: the config's dropout is applied. */
  train(): this {
    for (const layer of this.parts('linear')) layer.train()
    return this
  }

  /** Turns dropout off in all layers. */
  eval(): this {
    for (const layer of this.parts('linear')) layer.eval()
    return this
  }

  /**
   * Merges all linear layers into their base weights. If a layer cannot be merged, none is. Parts of other kinds have
   * no base weight in memory; use `merge` to write a model with everything merged.
   *
   * @throws StateError if a layer is merged already or has no base weight, NumericError if a result is not finite
   * @example
   * const adapter = new LoraAdapter({ rank: 2 })
   * const layer = adapter.addLayer('q_proj', baseWeight)
   * adapter.mergeAll()
   * console.log(layer.baseWeight) // W + s·B·A
   * adapter.unmergeAll()
   */
  mergeAll(): void {
    const done: LoraLayer[] = []
    try {
      for (const layer of this.parts('linear')) {
        layer.merge()
        done.push(layer)
      }
    } catch (error) {
      for (const layer of done) layer.unmerge()
      throw error
    }
  }

  /**
   * Unmerges all linear layers, or none if any of them is not merged.
   *
   * @throws StateError that names a layer which is not merged.
   */
  unmergeAll(): void {
    for (const { name, merged } of this.parts('linear')) {
      if (!merged) throw new StateError({ where: name, what: 'not merged; nothing was changed' })
    }
    for (const layer of this.parts('linear')) layer.unmerge()
  }

  /** Counts the numbers that are trained, in all parts. */
  totalTrainableParams(): number {
    return this.parts().reduce((sum, part) => sum + part.trainableParams(), 0)
  }

  /** Counts the numbers of the base's adapted weights and of the parts that adapt them. */
  totalParams(): number {
    return this.parts().reduce((sum, part) => sum + part.totalParams(), 0)
  }

  /** Frees the base weights of all linear layers. The adapter's tensors stay, so it can still be saved. */
  dispose(): void {
    for (const layer of this.parts('linear')) layer.dispose()
  }

  [Symbol.dispose](): void {
    this.dispose()
  }

  #add<Added extends AdapterPart>(name: string, make: () => Added): Added {
    if (typeof name !== 'string' || name === '') {
      throw new ConfigError({ where: 'LoraAdapter', what: 'a layer needs a name', expected: 'text that is not empty' })
    }
    if (this.#parts.has(name)) {
      throw new ConfigError({ where: name, what: 'the adapter has a layer of that name already' })
    }
    const part = make()
    this.#parts.set(name, part)
    return part
  }
}
