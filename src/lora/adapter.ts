// LoraAdapter: named layers that share a config. What folders hold, what training yields, what merging and sessions take. Most
// hold linear layers alone; `embeddings`, `convolutions`, `experts`, `replacements` and `tokenRows` are what else PEFT saves.

import { ConfigError, MismatchError, nearMisses, StateError } from '../base/errors.js'
import { elementCount, type FloatArray, type Matrix, type MatrixLike, type Tensor } from '../base/tensor.js'
import { type LoraConfig, type LoraConfigInput, resolveConfig } from './config.js'
import type { LayerVectors } from './factors.js'
import { ConvolutionLora } from './kinds/convolution.js'
import { EmbeddingLora } from './kinds/embedding.js'
import { ExpertLora } from './kinds/experts.js'
import type { ConvolutionGeometry } from './kinds/windows.js'
import { LoraLayer } from './layer.js'
import { mergeOrNone } from './merge-all.js'
import { type AdapterPart, linearKind, type PartKind } from './plain.js'
import type { Replacement, TokenRows } from './replacements.js'

/** A layer in numbers. */
export interface LayerSummary {
  name: string
  /** Rows of B: features out; of an embedding, its features. */
  d: number
  /** Columns of A: features in; of an embedding, its vocabulary; of a convolution, channels in times the kernel's elements. */
  k: number
  rank: number
  /** Elements of the factors, and of a magnitude and a bias of B; of a parameter, of all its experts. */
  trainableParams: number
  /** Elements of the weight and of all that adapts it. */
  totalParams: number
  /** trainable / total */
  compressionRatio: number
  /** The delta is in the base weight. */
  merged: boolean
}

/** What {@link LoraAdapter.summary} gives. */
export interface AdapterSummary {
  /** Layers of every kind: linear ones, embeddings, convolutions, parameters. */
  layers: LayerSummary[]
  /** As {@link LoraAdapter.totalTrainableParams}: with the elements of trained tensors and rows. */
  totalTrainable: number
  /** Σ totalParams over the layers. */
  totalParams: number
}

type AnyLora = LoraLayer | EmbeddingLora | ConvolutionLora | ExpertLora

/**
 * Layers that share a config, and what else an adapter changes. Iterates over `[name, layer]` of the linear layers, in the order in
 * which they were added; embeddings, convolutions and parameters have maps of their own.
 */
export class LoraAdapter implements Iterable<[name: string, layer: LoraLayer]> {
  /** What all layers share; each has its own rank and alpha in a config of its own. */
  readonly config: LoraConfig
  /** By the base's tensor name, as in `model.norm.weight`: whole tensors that take the place of the base's. */
  readonly replacements = new Map<string, Replacement>()
  /** By the embedding's module name: rows that take the place of the base's. */
  readonly tokenRows = new Map<string, TokenRows>()
  /** What its folder spelled otherwise than PEFT does now, one clause each; saving writes the current spelling. */
  readonly notes: string[] = []
  readonly #layers = new Map<string, LoraLayer>()
  readonly #embeddings = new Map<string, EmbeddingLora>()
  readonly #convolutions = new Map<string, ConvolutionLora>()
  readonly #experts = new Map<string, ExpertLora>()

  /** @throws ConfigError or UnsupportedError when the config is not usable. */
  constructor(config: LoraConfigInput = {}) {
    this.config = resolveConfig(config)
  }

  /**
   * A new linear layer over a copy of `baseWeight` (d, k), with the rank and alpha that the config's patterns give its name.
   *
   * @throws ConfigError when the name is empty or taken; else as {@link LoraLayer}'s constructor
   */
  addLayer(name: string, baseWeight: MatrixLike): LoraLayer {
    return this.#add(this.#layers, name, () => new LoraLayer(baseWeight, this.config, name))
  }

  /** A new linear layer for a weight (d, k) that stays where it is. Throws as {@link addLayer} and {@link LoraLayer.ofShape}. */
  addLayerOfShape(name: string, shape: readonly [d: number, k: number]): LoraLayer {
    return this.#add(this.#layers, name, () => LoraLayer.ofShape(shape, this.config, name))
  }

  /**
   * A linear layer from copies of A (r, k) and B (d, r), without a base weight, in evaluation mode.
   *
   * @throws ConfigError when the name is empty or taken, or vectors and config disagree; ShapeError when r is not the rank that
   *   the config gives the name.
   */
  addFactors(name: string, weightA: MatrixLike, weightB: MatrixLike, vectors: LayerVectors = {}): LoraLayer {
    return this.#add(this.#layers, name, () => LoraLayer.fromFactors(weightA, weightB, this.config, name, vectors))
  }

  /** An embedding from copies of A (r, V) and B (D, r), without its base. Throws as {@link addFactors}. */
  addEmbedding(
    name: string,
    weightA: MatrixLike,
    weightB: MatrixLike,
    vectors: Pick<LayerVectors, 'magnitude'> = {},
  ): EmbeddingLora {
    return this.#add(this.#embeddings, name, () => new EmbeddingLora(weightA, weightB, this.config, name, vectors))
  }

  /**
   * A convolution from copies of A (r, in, *kernel) and B (d, r/groups, 1…), without its base, in evaluation mode. Throws as
   * {@link addFactors}.
   */
  addConvolution(
    name: string,
    weightA: Tensor<FloatArray>,
    weightB: Tensor<FloatArray>,
    vectors: LayerVectors = {},
  ): ConvolutionLora {
    return this.#add(this.#convolutions, name, () => new ConvolutionLora(weightA, weightB, this.config, name, vectors))
  }

  /**
   * A new convolution over a copy of the base's weight (d, in/groups, *kernel).
   *
   * @throws ConfigError when the name is empty or taken; else as {@link ConvolutionLora.ofBase}
   */
  addConvolutionLayer(
    name: string,
    weight: Tensor<FloatArray>,
    geometry: ConvolutionGeometry & { groups?: number | undefined } = {},
  ): ConvolutionLora {
    return this.#add(this.#convolutions, name, () => ConvolutionLora.ofBase(weight, geometry, this.config, name))
  }

  /**
   * A parameter of E experts from copies of A (E·r, k) and B (d, r·E), without its base.
   *
   * @param name the parameter's full name, MODULE.PARAMETER
   * @throws ConfigError when the name is taken, or no parameter's; ShapeError when factors and rank disagree
   */
  addExperts(name: string, weightA: MatrixLike, weightB: MatrixLike): ExpertLora {
    return this.#add(this.#experts, name, () => {
      const experts = new ExpertLora(weightA, weightB, this.config, name)
      if (experts.module !== '') return experts
      throw new ConfigError({ where: name, what: 'not the full name of a parameter', expected: 'MODULE.PARAMETER' })
    })
  }

  /** Adapted embeddings by name. */
  get embeddings(): ReadonlyMap<string, EmbeddingLora> {
    return this.#embeddings
  }

  /** Adapted convolutions by name. */
  get convolutions(): ReadonlyMap<string, ConvolutionLora> {
    return this.#convolutions
  }

  /** Adapted parameters by their full names. */
  get experts(): ReadonlyMap<string, ExpertLora> {
    return this.#experts
  }

  /** All that the adapter changes in its base, with the kind of each change. */
  parts(): AdapterPart[] {
    const named = (names: Iterable<string>, kind: PartKind) => Array.from(names, (name) => ({ name, kind }))
    return [
      ...Array.from(this.#layers, ([name, layer]) => ({ name, kind: linearKind(layer) })),
      ...named(this.#embeddings.keys(), 'embedding'),
      ...named(this.#convolutions.keys(), 'convolution'),
      ...named(this.#experts.keys(), 'parameter'),
      ...named(this.replacements.keys(), 'replacement'),
      ...named(this.tokenRows.keys(), 'token-rows'),
    ]
  }

  /** Number of linear layers. */
  get size(): number {
    return this.#layers.size
  }

  /** Whether there is a linear layer of that name. */
  has(name: string): boolean {
    return this.#layers.has(name)
  }

  /**
   * The linear layer of that name.
   *
   * @throws MismatchError when there is none
   */
  layer(name: string): LoraLayer {
    const layer = this.#layers.get(name)
    if (layer !== undefined) return layer
    const near = nearMisses(name, this.#layers.keys())
    throw new MismatchError({
      where: name,
      what: 'the adapter has no such layer',
      ...(near.length > 0 && { hint: `Did you mean ${near.join(', ')}` }),
    })
  }

  /** Names of the linear layers. */
  names(): string[] {
    return [...this.#layers.keys()]
  }

  /** `[name, layer]` of the linear layers. */
  [Symbol.iterator](): IterableIterator<[string, LoraLayer]> {
    return this.#layers.entries()
  }

  /** (n, k) → (n, d) through the named layer. Throws as {@link LoraLayer.forward} and {@link layer} do. */
  forward(name: string, input: MatrixLike): Matrix {
    return this.layer(name).forward(input)
  }

  /** Dropout on in all layers that PEFT has it for, where the config has it. */
  train(): this {
    for (const layer of [...this.#layers.values(), ...this.#convolutions.values()]) layer.train()
    return this
  }

  /** Dropout off in all layers. */
  eval(): this {
    for (const layer of [...this.#layers.values(), ...this.#convolutions.values()]) layer.eval()
    return this
  }

  /**
   * Merges all layers, or none when one of them cannot be. Layers hold weights: what an adapter replaces is not among them.
   *
   * @throws StateError when a layer is merged already or has no base weight, NumericError when a result is not finite,
   *   UnsupportedError for a convolution that cannot be merged.
   */
  mergeAll(): void {
    mergeOrNone(this.#all())
  }

  /**
   * Unmerges all layers, or none when one of them is not merged.
   *
   * @throws StateError that names the layer which is not merged.
   */
  unmergeAll(): void {
    for (const { name, merged } of this.#all()) {
      if (!merged) throw new StateError({ where: name, what: 'not merged; no layer was changed' })
    }
    for (const layer of this.#all()) layer.unmerge()
  }

  /** Σ r·(d + k), with magnitudes and biases, embeddings, convolutions, parameters, and the elements of trained tensors and rows. */
  totalTrainableParams(): number {
    let sum = 0
    for (const layer of this.#all()) sum += layer.trainableParams()
    for (const { shape, isTrained } of this.replacements.values()) sum += isTrained ? elementCount(shape) : 0
    for (const { shape } of this.tokenRows.values()) sum += elementCount(shape)
    return sum
  }

  /** Sizes of all layers and of the adapter. */
  summary(): AdapterSummary {
    const layers = Array.from(this.#all(), (layer): LayerSummary => {
      const { name, rank, merged } = layer
      const [d, k] = layer instanceof EmbeddingLora ? [layer.features, layer.vocabulary] : [layer.d, layer.k]
      const [trainableParams, totalParams] = [layer.trainableParams(), layer.totalParams()]
      return { name, d, k, rank, trainableParams, totalParams, compressionRatio: trainableParams / totalParams, merged }
    })
    return {
      layers,
      totalTrainable: this.totalTrainableParams(),
      totalParams: layers.reduce((sum, layer) => sum + layer.totalParams, 0),
    }
  }

  /** Lets go of all base weights. The factors stay: the adapter can be saved. */
  dispose(): void {
    for (const layer of this.#all()) layer.dispose()
  }

  [Symbol.dispose](): void {
    this.dispose()
  }

  *#all(): Generator<AnyLora> {
    yield* this.#layers.values()
    yield* this.#embeddings.values()
    yield* this.#convolutions.values()
    yield* this.#experts.values()
  }

  #add<Layer extends AnyLora>(layers: Map<string, Layer>, name: string, make: () => Layer): Layer {
    this.#checkName(name)
    const layer = make()
    layers.set(name, layer)
    return layer
  }

  #checkName(name: string): void {
    const isTaken = [this.#layers, this.#embeddings, this.#convolutions, this.#experts].some((own) => own.has(name))
    if (name !== '' && !isTaken) return
    throw new ConfigError({
      where: name === '' ? 'LoraAdapter' : name,
      what: name === '' ? 'a layer needs a name' : 'the adapter has a layer of that name already',
    })
  }
}
