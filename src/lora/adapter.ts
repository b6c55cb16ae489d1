// LoraAdapter: one ordered map of named parts that share a config. It is what folders hold, what training yields, what
// merging and sessions take. Most parts are linear layers; the other kinds are what else PEFT saves.

import type { FloatDtype } from '../base/dtype.js'
import { ConfigError, didYouMean, MismatchError, StateError } from '../base/errors.js'
import type { FloatArray, Matrix, MatrixLike, Tensor } from '../base/tensor.js'
import { type LoraConfig, type LoraConfigInput, resolveConfig } from './config.js'
import type { LayerVectors } from './factors.js'
import { ConvolutionLora } from './kinds/convolution.js'
import { EmbeddingLora } from './kinds/embedding.js'
import { ExpertLora } from './kinds/experts.js'
import { Replacement, type ReplacementOptions, type StoredValues, TokenRows } from './kinds/stored.js'
import { LoraLayer } from './layer.js'
import { ADAPTERS, type PartKind, type PartValues, type ProblemType, rowsName } from './part.js'

/** A part of an adapter: its `kind` tells which class it is. */
export type AdapterPart = LoraLayer | EmbeddingLora | ConvolutionLora | ExpertLora | Replacement | TokenRows

/** The class of a kind of parts. */
export type PartOfKind<Kind extends PartKind> = Extract<AdapterPart, { readonly kind: Kind }>

/** The base of an adapter. */
export interface BaseRecord {
  /** Path of the graph in the model's folder. */
  readonly graph: string
  /** A digest of its weights. */
  readonly weights: string
}

/**
 * Named parts that share a config. Iterates over `[name, part]` in the order in which they were added.
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
  /** The settings that all parts share. Each layer has a config of its own, with its own rank and alpha. */
  readonly config: LoraConfig
  /** Unusual things in the folder that the adapter was read from, such as older names of tensors. */
  readonly notes: string[] = []
  /**
   * The chat template (Jinja) of the chats that it was trained on: it is asked with the same. Undefined for other
   * adapters.
   */
  chatTemplate: string | undefined
  /** Names of the labels of the classification head. Undefined if there is no head, or if the names are unknown. */
  labels: readonly string[] | undefined
  /** The type of the labels, as transformers' `problem_type`. Undefined if no file contains it. */
  problemType: ProblemType | undefined
  /** The base that lowrank trained it on, as its folder records it. Undefined for other adapters. */
  trainedOn: BaseRecord | undefined
  readonly #parts = new Map<string, AdapterPart>()

  /** @throws ConfigError or UnsupportedError when the config is not valid. */
  constructor(config: LoraConfigInput = {}) {
    this.config = resolveConfig(config)
    ADAPTERS.add(this)
  }

  /**
   * A new linear layer over a copy of `baseWeight` (d, k), with the rank and alpha that the config's patterns give its
   * name.
   *
   * @throws ConfigError when the name is empty or taken; else as {@link LoraLayer}'s constructor
   * @example
   * const layer = adapter.addLayer('model.layers.0.self_attn.k_proj', baseWeight)
   */
  addLayer(name: string, baseWeight: MatrixLike): LoraLayer {
    return this.#add(name, () => new LoraLayer(baseWeight, this.config, name))
  }

  /**
   * A new linear layer for a weight (d, k) that stays where it is. Throws as {@link addLayer} and {@link
   * LoraLayer.ofShape}.
   */
  addLayerOfShape(name: string, shape: readonly [d: number, k: number]): LoraLayer {
    return this.#add(name, () => LoraLayer.ofShape(shape, this.config, name))
  }

  /**
   * A linear layer from copies of A (r, k) and B (d, r), without a base weight, in evaluation mode.
   *
   * @throws ConfigError when the name is empty or taken, or vectors and config disagree; ShapeError when r is not the
   *   rank that the config gives the name.
   * @example
   * adapter.addFactors('model.layers.0.mlp.up_proj', [[1, 0, 2], [0, 1, 0]], [[0.5, 0], [0.25, 1]])
   */
  addFactors(name: string, weightA: MatrixLike, weightB: MatrixLike, vectors: LayerVectors = {}): LoraLayer {
    return this.#add(name, () => LoraLayer.fromFactors(weightA, weightB, this.config, name, vectors))
  }

  /** An embedding from copies of A (r, V) and B (D, r), without its base. Throws as {@link addFactors}. */
  addEmbedding(
    name: string,
    weightA: MatrixLike,
    weightB: MatrixLike,
    vectors: Pick<LayerVectors, 'magnitude'> = {},
  ): EmbeddingLora {
    return this.#add(name, () => new EmbeddingLora(weightA, weightB, this.config, name, vectors))
  }

  /**
   * A convolution from copies of A (r, in, *kernel) and B (d, r/groups, 1…), without its base, in evaluation mode.
   * Throws as {@link addFactors}.
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
   * A parameter of E experts from copies of A (E·r, k) and B (d, r·E), without its base.
   *
   * @param name the parameter's full name, MODULE.PARAMETER
   * @throws ConfigError when the name is used already, or is not MODULE.PARAMETER; ShapeError when factors and rank
   *   disagree
   */
  addExperts(name: string, weightA: MatrixLike, weightB: MatrixLike): ExpertLora {
    return this.#add(name, () => {
      const experts = new ExpertLora(weightA, weightB, this.config, name)
      if (experts.module !== '') return experts
      throw new ConfigError({ where: name, what: 'not the full name of a parameter', expected: 'MODULE.PARAMETER' })
    })
  }

  /**
   * A whole tensor that takes the place of the base's, or that the base does not have, as a new head. Saved as PEFT
   * saves `modules_to_save`.
   *
   * @param name the tensor's, MODULE.TENSOR, as in `classifier.weight`
   * @param values copied when they are numbers; bytes of a file are kept as they are
   * @throws ConfigError when the name is taken, or no tensor's; ShapeError when shape and values disagree
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
   * Rows (n, D) that take the place of some rows of an embedding. The part's name is MODULE[tokens]: the embedding
   * itself can be a part, too.
   *
   * @param module the embedding's, as in `model.embed_tokens`
   * @param indices n different tokens, in the order of the rows
   * @throws ConfigError when the module has rows already, or a token is not valid or given twice; ShapeError for
   *   another number of rows
   * @example
   * adapter.addTokenRows('model.embed_tokens', [31, 7], { data: new Float32Array(2 * 64), shape: [2, 64] })
   */
  addTokenRows(module: string, indices: readonly number[], rows: StoredValues): TokenRows {
    return this.#add(
      typeof module === 'string' && module !== '' ? rowsName(module) : '',
      () => new TokenRows(module, indices, rows),
    )
  }

  /** @internal A part from copies of its values, whatever its kind. Throws as the method of its kind does. */
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
   * Removes a part from the adapter, and returns whether there was one of that name. The part itself does not change.
   */
  remove(name: string): boolean {
    return this.#parts.delete(name)
  }

  /** An adapter of the same config with the parts of these names alone. Both have the same parts, not copies. */
  only(names: ReadonlySet<string>): LoraAdapter {
    const adapter = new LoraAdapter(this.config)
    adapter.chatTemplate = this.chatTemplate
    adapter.labels = this.labels
    adapter.problemType = this.problemType
    adapter.trainedOn = this.trainedOn
    for (const [name, part] of this.#parts) if (names.has(name)) adapter.#parts.set(name, part)
    return adapter
  }

  /** Number of parts. */
  get size(): number {
    return this.#parts.size
  }

  /** Names of the parts, in their order. */
  names(): string[] {
    return [...this.#parts.keys()]
  }

  /** True if there is a part of that name. */
  has(name: string): boolean {
    return this.#parts.has(name)
  }

  /**
   * The part of that name; undefined when there is none, or none of that kind.
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
   * All parts, or those of some kinds, in their order.
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
   * The linear layer of that name.
   *
   * @throws MismatchError when there is none
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

  /** `[name, part]` of all parts. */
  [Symbol.iterator](): IterableIterator<[string, AdapterPart]> {
    return this.#parts.entries()
  }

  /** (n, k) → (n, d) through the named linear layer. Throws as {@link LoraLayer.forward} and {@link layer} do. */
  forward(name: string, input: MatrixLike): Matrix {
    return this.layer(name).forward(input)
  }

  /** Turns dropout on in linear layers, where the config has it. */
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
   * Merges all linear layers into their base weights. If one cannot be merged, it merges none. The other parts have no
   * base weight in memory: `merge` writes a model with all of them.
   *
   * @throws StateError when a layer is merged already or has no base weight, NumericError when a result is not finite
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
   * Unmerges all linear layers, or none when one of them is not merged.
   *
   * @throws StateError that names the layer which is not merged.
   */
  unmergeAll(): void {
    for (const { name, merged } of this.parts('linear')) {
      if (!merged) throw new StateError({ where: name, what: 'not merged; nothing was changed' })
    }
    for (const layer of this.parts('linear')) layer.unmerge()
  }

  /** How many numbers of all parts are trained. */
  totalTrainableParams(): number {
    return this.parts().reduce((sum, part) => sum + part.trainableParams(), 0)
  }

  /** How many numbers the weights and all that adapts them have. */
  totalParams(): number {
    return this.parts().reduce((sum, part) => sum + part.totalParams(), 0)
  }

  /** Frees the base weights of all linear layers. The parts' own tensors stay: the adapter can be saved. */
  dispose(): void {
    for (const layer of this.parts('linear')) layer.dispose()
  }

  [Symbol.dispose](): void {
    this.dispose()
  }

  #add<Own extends AdapterPart>(name: string, make: () => Own): Own {
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
