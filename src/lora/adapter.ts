// LoraAdapter: named layers that share a config. What folders hold, what training yields, what merging and sessions take. Most
// hold linear layers alone; `embeddings`, `convolutions`, `experts`, `replacements` and `tokenRows` are what else PEFT saves.

import { ConfigError, MismatchError, nearMisses, StateError } from '../base/errors.js'
import { elementCount, type FloatArray, type Matrix, type MatrixLike, type Tensor } from '../base/tensor.js'
import { type LoraConfig, type LoraConfigInput, resolveConfig } from './config.js'
import { ConvolutionLora } from './convolution.js'
import { EmbeddingLora } from './embedding.js'
import { ExpertLora } from './experts.js'
import type { LayerVectors } from './factors.js'
import { LoraLayer } from './layer.js'
import type { AdapterPart } from './plain.js'
import type { Replacement, TokenRows } from './replacements.js'
import type { ConvolutionGeometry } from './windows.js'

export interface LayerSummary {
  name: string
  d: number
  k: number
  rank: number
  trainableParams: number
  totalParams: number
  compressionRatio: number
  merged: boolean
}

export interface AdapterSummary {
  layers: LayerSummary[]
  totalTrainable: number
  totalParams: number
}

type AnyLora = LoraLayer | EmbeddingLora | ConvolutionLora | ExpertLora

/** Iterates over `[name, layer]` of the linear layers, in the order in which they were added. */
export class LoraAdapter implements Iterable<[name: string, layer: LoraLayer]> {
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
   * A new layer over a copy of `baseWeight` (d, k), with the rank and alpha that the config's patterns give its name.
   *
   * @throws ConfigError when the name is empty or taken, or the rank is above min(d, k).
   */
  addLayer(name: string, baseWeight: MatrixLike): LoraLayer {
    return this.#add(name, () => new LoraLayer(baseWeight, this.config, name))
  }

  /** The same for a weight of that shape that stays where it is: {@link LoraLayer.ofShape}. */
  addLayerOfShape(name: string, shape: readonly [d: number, k: number]): LoraLayer {
    return this.#add(name, () => LoraLayer.ofShape(shape, this.config, name))
  }

  /**
   * A layer from copies of A (r, k) and B (d, r), without a base weight, in evaluation mode.
   *
   * @throws ConfigError when the name is empty or taken, or vectors and config disagree; ShapeError when r is not the rank that
   *   the config gives the name.
   */
  addFactors(name: string, weightA: MatrixLike, weightB: MatrixLike, vectors: LayerVectors = {}): LoraLayer {
    return this.#add(name, () => LoraLayer.fromFactors(weightA, weightB, this.config, name, vectors))
  }

  /** The same for an embedding: A (r, V), B (D, r). It is not among the layers that the adapter iterates over. */
  addEmbedding(
    name: string,
    weightA: MatrixLike,
    weightB: MatrixLike,
    vectors: Pick<LayerVectors, 'magnitude'> = {},
  ): EmbeddingLora {
    this.#checkName(name)
    const embedding = new EmbeddingLora(weightA, weightB, this.config, name, vectors)
    this.#embeddings.set(name, embedding)
    return embedding
  }

  /** The same for a convolution: A (r, in, *kernel), B (d, r/groups, 1…). It is not among the layers that the adapter iterates over. */
  addConvolution(
    name: string,
    weightA: Tensor<FloatArray>,
    weightB: Tensor<FloatArray>,
    vectors: LayerVectors = {},
  ): ConvolutionLora {
    this.#checkName(name)
    const convolution = new ConvolutionLora(weightA, weightB, this.config, name, vectors)
    this.#convolutions.set(name, convolution)
    return convolution
  }

  /** A new layer over a copy of a convolution's weight (d, in/groups, *kernel): {@link ConvolutionLora.ofBase}. */
  addConvolutionLayer(
    name: string,
    weight: Tensor<FloatArray>,
    geometry: ConvolutionGeometry & { groups?: number | undefined } = {},
  ): ConvolutionLora {
    this.#checkName(name)
    const convolution = ConvolutionLora.ofBase(weight, geometry, this.config, name)
    this.#convolutions.set(name, convolution)
    return convolution
  }

  /** Adapted convolutions by name. */
  get convolutions(): ReadonlyMap<string, ConvolutionLora> {
    return this.#convolutions
  }

  /** Adapted embeddings by name. */
  get embeddings(): ReadonlyMap<string, EmbeddingLora> {
    return this.#embeddings
  }

  /**
   * The same for a parameter, by its full name: A (E·r, k), B (d, r·E) for E experts.
   *
   * @throws ConfigError when the name is empty or taken, or no module's; ShapeError when factors and rank disagree
   */
  addExperts(name: string, weightA: MatrixLike, weightB: MatrixLike): ExpertLora {
    this.#checkName(name)
    const experts = new ExpertLora(weightA, weightB, this.config, name)
    if (experts.module === '') {
      throw new ConfigError({ where: name, what: 'not the full name of a parameter', expected: 'MODULE.PARAMETER' })
    }
    this.#experts.set(name, experts)
    return experts
  }

  /** Adapted parameters by their full names. */
  get experts(): ReadonlyMap<string, ExpertLora> {
    return this.#experts
  }

  /** All that the adapter changes in its base, with the kind of each change. */
  parts(): AdapterPart[] {
    const layers = [...this.#layers].map(([name, { magnitude, biasB }]): AdapterPart => {
      return { name, kind: magnitude !== undefined ? 'dora' : biasB !== undefined ? 'lora-bias' : 'linear' }
    })
    const others = (names: Iterable<string>, kind: AdapterPart['kind']) => [...names].map((name) => ({ name, kind }))
    return [
      ...layers,
      ...others(this.#embeddings.keys(), 'embedding'),
      ...others(this.#convolutions.keys(), 'convolution'),
      ...others(this.#experts.keys(), 'parameter'),
      ...others(this.replacements.keys(), 'replacement'),
      ...others(this.tokenRows.keys(), 'token-rows'),
    ]
  }

  /** Number of linear layers. */
  get size(): number {
    return this.#layers.size
  }

  has(name: string): boolean {
    return this.#layers.has(name)
  }

  /** @throws MismatchError when there is no layer of that name. */
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

  names(): string[] {
    return [...this.#layers.keys()]
  }

  [Symbol.iterator](): IterableIterator<[string, LoraLayer]> {
    return this.#layers.entries()
  }

  /** (n, k) → (n, d) through the named layer. Throws as {@link LoraLayer.forward} and {@link layer} do. */
  forward(name: string, input: MatrixLike): Matrix {
    return this.layer(name).forward(input)
  }

  /** Dropout on in all layers, where the config has it. */
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
    const done: AnyLora[] = []
    try {
      for (const layer of this.#all()) {
        layer.merge()
        done.push(layer)
      }
    } catch (error) {
      for (const layer of done) layer.unmerge()
      throw error
    }
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

  summary(): AdapterSummary {
    const layers = [...this.#layers, ...this.#convolutions].map(([name, layer]) => ({
      name,
      d: layer.d,
      k: layer.k,
      rank: layer.rank,
      trainableParams: layer.trainableParams(),
      totalParams: layer.totalParams(),
      compressionRatio: layer.compressionRatio(),
      merged: layer.merged,
    }))
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

  #add(name: string, make: () => LoraLayer): LoraLayer {
    this.#checkName(name)
    const layer = make()
    this.#layers.set(name, layer)
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
