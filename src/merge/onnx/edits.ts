// The changes of adapters in an ONNX graph, place by place. A place is one input of one node: what becomes of the
// initializers behind it, which may be shared, is the plan's to decide.

import { concatBytes } from '../../base/bytes.js'
import { MismatchError, UnsupportedError } from '../../base/errors.js'
import type { FloatArray, Matrix } from '../../base/tensor.js'
import type { OnnxModel } from '../../formats/onnx/model.js'
import { weightInput } from '../../graph/match/forms/form.js'
import { findEmbeddings } from '../../graph/match/forms/lookup.js'
import { findLinears, type Linear, type ModuleMap } from '../../graph/match/linears.js'
import {
  biasOf,
  type Convolution,
  findConvolutions,
  ofModule,
  type Place,
  shapeError,
} from '../../graph/match/parameters.js'
import { placeAdapter } from '../../graph/match/place-adapter.js'
import {
  embeddingsOf,
  type ModelPlaces,
  placeReplacement,
  placeTokenRows,
  refuse,
} from '../../graph/match/stored-places.js'
import { floatAttribute } from '../../graph/view/attributes.js'
import type { Graph } from '../../graph/view/graph.js'
import type { LoraAdapter } from '../../lora/adapter.js'
import type { ConvolutionLora } from '../../lora/kinds/convolution.js'
import { groupsRefusal } from '../../lora/kinds/convolution-factors.js'
import { type Replacement, rowsName, type StoredTensor, type TokenRows } from '../../lora/kinds/stored.js'
import { GRAPH_PARTS, requireHandled } from '../../lora/requirements.js'
import { refuseWeighted, weightedError } from '../weighted.js'
import type { QuantizedLayer, QuantizedPolicy } from './quantized.js'

/** One layer of one adapter within a weight. */
export interface EditPart {
  /** The layer's name in the adapter. Undefined for a part that no report names. */
  readonly name: string | undefined
  /** A (r, k) */
  readonly weightA: Matrix
  /** B (d, r) */
  readonly weightB: Matrix
  /** weight · s, by which B·A is multiplied. */
  readonly scale: number
  /** DoRA's m (d). Such a part has its outputs for itself. */
  readonly magnitude: FloatArray | undefined
  /**
   * The first of the weight's output features that is the layer's. It is above 0 in weights that several layers share.
   */
  readonly start: number
}

/** Values that take the base's place before the parts are added: all of them, or some rows or columns. */
export interface NewValues {
  readonly tensor: StoredTensor
  /** The tensor is (columns, rows). Only if it holds all values. */
  readonly isTransposed: boolean
  /** The rows (axis 0) or columns (axis 1) that the tensor (n, …) holds. Undefined: all. */
  readonly lines: { readonly axis: 0 | 1; readonly indices: readonly number[] } | undefined
}

/** The changes of the tensor that comes in at a place. */
export interface Edit extends Place {
  /** The tensor's name as the adapter has it, for messages and for a copy of its own. */
  readonly name: string
  /** Stored (k, d). */
  readonly isInputMajor: boolean
  readonly parts: EditPart[]
  values: NewValues | undefined
  /** Names all that is done to it: places with the same list can keep sharing one tensor. */
  readonly keys: string[]
}

/** How edits are collected. */
interface CollectOptions {
  readonly policy?: QuantizedPolicy | undefined
  /** The content of config.json. */
  readonly config?: Readonly<Record<string, unknown>> | undefined
  /** Tensors of adapters that are no edits of the graph. Default: none. */
  readonly isElsewhere?: (adapter: LoraAdapter, tensor: string) => boolean
}

/**
 * Reads weights only to tell whether embeddings are tied, for adapters that replace some of their values.
 *
 * @param isElsewhere whole tensors that need no place, because they are a new head's
 * @throws MismatchError when an adapter is empty or does not fit; UnsupportedError naming what cannot be found in the
 *   graph for certain, is there in a form that cannot be changed, or cannot be combined
 */
export async function collectEdits(
  model: OnnxModel,
  graph: Graph,
  adapters: readonly { readonly adapter: LoraAdapter; readonly weight: number }[],
  modules: ModuleMap,
  { policy, config = {}, isElsewhere = () => false }: CollectOptions = {},
): Promise<{ edits: Edit[]; quantized: readonly QuantizedLayer[] }> {
  const linears = findLinears(graph, modules)
  const edits = new Edits({ model, graph, linears, config, embeddings: findEmbeddings(graph) }, policy)
  for (const [index, { adapter, weight }] of adapters.entries()) {
    requireHandled(adapter, GRAPH_PARTS, 'merging into ONNX models')
    refuseWeighted(adapter.parts(), weight)
    if (adapter.size === 0) throw new MismatchError({ where: 'adapter', what: 'it has no layers' })
    edits.addLayers(index, adapter, weight)
    for (const replacement of adapter.parts('replacement')) {
      if (isElsewhere(adapter, replacement.name)) continue
      await edits.addReplacement(index, replacement, adapter.config.fanInFanOut, (other) => adapter.has(other))
    }
    for (const rows of adapter.parts('token-rows')) {
      await edits.addRows(index, rows, (other) => adapter.has(rowsName(other)))
    }
  }
  for (const edit of edits.all()) refuseCombination(edit)
  return { edits: edits.all(), quantized: edits.quantized }
}

class Edits {
  readonly #graph: Graph
  readonly #linears: readonly Linear[]
  readonly #places: ModelPlaces
  readonly #convolutions: readonly Convolution[]
  readonly #byPlace = new Map<Place['node'], Map<number, Edit>>()
  /** Layers whose weights are integers. */
  readonly quantized: QuantizedLayer[] = []
  readonly #policy: QuantizedPolicy | undefined

  constructor(places: ModelPlaces, policy: QuantizedPolicy | undefined) {
    const { graph, linears } = places
    this.#policy = policy
    this.#graph = graph
    this.#linears = linears
    this.#places = places
    this.#convolutions = findConvolutions(graph)
  }

  all(): Edit[] {
    return [...this.#byPlace.values()].flatMap((edits) => [...edits.values()])
  }

  /** Linear layers, convolutions, their biases of B, and embeddings. */
  addLayers(index: number, adapter: LoraAdapter, weight: number): void {
    const linears = adapter.parts('linear').length === 0 ? [] : placeAdapter(this.#graph, this.#linears, adapter)
    for (const { name, layer, linear } of linears) {
      const { weightA, weightB, magnitude, biasB } = layer
      if (linear.form.isQuantized) {
        if (magnitude !== undefined && Math.abs(weight) !== 1) throw weightedError(name, 'a DoRA layer', weight)
        this.quantized.push({ adapter: index, name, layer, linear, weight })
        if (this.#policy !== 'requantize') continue
      } else if (magnitude !== undefined && weight !== 1) throw weightedError(name, 'a DoRA layer', weight)
      const scale = weight * layer.scaling
      const start = linear.fused?.start ?? 0
      if (!linear.form.isQuantized) {
        this.#weightOf(linear, name).add(
          { name: layer.name, weightA, weightB, scale, magnitude, start },
          `${index}:${linear.name}`,
        )
      }
      if (biasB === undefined) continue
      const bias = biasOf(this.#graph, linear)
      if (bias === undefined) throw noBias(name)
      this.#at(bias, `${name}.bias`, true).add(biasPart(biasB, scale, bias.start), `${index}:${name}.bias`)
    }
    for (const convolution of adapter.parts('convolution')) this.#addConvolution(index, convolution, weight)
    for (const embedding of adapter.parts('embedding')) {
      const { name, weightA, weightB, magnitude, vocabulary, features, scaling } = embedding
      const part = { name, weightA, weightB, scale: weight * scaling, magnitude, start: 0 }
      for (const linear of embeddingsOf(this.#places, name, [vocabulary, features])) {
        const { isQuantized } = linear.form
        const isPossible = isQuantized ? Math.abs(weight) === 1 : weight === 1
        if (magnitude !== undefined && !isPossible) throw weightedError(name, 'a DoRA layer', weight)
        if (!isQuantized) this.#weightOf(linear, linear.name).add(part, `${index}:${name}`)
        else this.quantized.push({ adapter: index, name, layer: embedding.product, linear, weight })
      }
    }
  }

  #addConvolution(index: number, layer: ConvolutionLora, weight: number): void {
    const { name, d, k, channels, kernel, groups, magnitude, biasB } = layer
    if (magnitude !== undefined && weight !== 1) throw weightedError(name, 'a DoRA layer', weight)
    const places = ofModule(this.#convolutions, name)
    if (places.length === 0) refuse(name, 'the graph has no convolution of this name')
    const scale = weight * layer.scaling
    for (const place of places) {
      const expected = [d, channels / groups, ...kernel]
      if (place.groups !== groups || place.shape.join() !== expected.join())
        throw shapeError(name, place.shape, expected)
      if (groups > 1) refuse(name, groupsRefusal(groups))
      // PEFT's A moves without the base's dilation, so that no change of the weight is what it does.
      if (place.dilations.some((dilation) => dilation !== 1)) refuse(name, 'a dilated convolution cannot be merged')
      const weightA: Matrix = { data: layer.weightA.data, shape: [layer.rank, k] }
      const weightB: Matrix = { data: layer.weightB.data, shape: [d, layer.rank] }
      const part = { name, weightA, weightB, scale, magnitude, start: 0 }
      this.#at(place, `${name}.weight`, false).add(part, `${index}:${name}`)
      if (biasB === undefined) continue
      if (place.bias === undefined) throw noBias(name)
      const bias = this.#at({ node: place.node, input: place.bias }, `${name}.bias`, true)
      bias.add(biasPart(biasB, scale, 0), `${index}:${name}.bias`)
    }
  }

  /** A whole tensor: a linear layer's weight or bias, an embedding, or what a norm reads. */
  async addReplacement(
    index: number,
    tensor: Replacement,
    isConv1d: boolean,
    isReplaced: (name: string) => boolean,
  ): Promise<void> {
    const key = `${index}=${tensor.name}`
    for (const place of await placeReplacement(this.#places, tensor, isConv1d, isReplaced)) {
      if (place.kind === 'weight') {
        const { linear, module, isInputMajor } = place
        this.#weightOf(linear, module).replace(tensor, isInputMajor === linear.transposed, key)
      } else if (place.kind === 'bias') {
        const { bias, linear } = place
        const edit = this.#at(bias, tensor.name, true)
        if (bias.width === linear.d) edit.replace(tensor, false, key)
        else edit.replaceElements(tensor, bias.start, key)
      } else this.#at(place.place, tensor.name, false).replace(shifted(tensor, place.offset), false, key)
    }
  }

  /** Rows of an embedding, or of the head: the same tokens, in tied embeddings of both. */
  async addRows(index: number, tensor: TokenRows, isReplaced: (module: string) => boolean): Promise<void> {
    const { module, indices } = tensor
    const key = `${index}#${module}`
    for (const linear of await placeTokenRows(this.#places, tensor, isReplaced)) {
      const isByRows = linear.transposed !== (linear.form.isLookup === true)
      this.#weightOf(linear, linear.name).replaceLines(tensor, isByRows ? 0 : 1, indices, key)
    }
  }

  #weightOf(linear: Linear, module: string): EditBuilder {
    refuseUnmergeable(linear)
    return this.#at({ node: linear.node, input: weightInput(linear) }, `${module}.weight`, !linear.transposed)
  }

  #at({ node, input }: Place, name: string, isInputMajor: boolean): EditBuilder {
    const ofNode = this.#byPlace.get(node) ?? new Map<number, Edit>()
    this.#byPlace.set(node, ofNode)
    const edit = ofNode.get(input) ?? { node, input, name, isInputMajor, parts: [], values: undefined, keys: [] }
    ofNode.set(input, edit)
    return new EditBuilder(edit)
  }
}

/** The values plus a number, in f32 where that is another one than 0. */
function shifted(tensor: Replacement, offset: number): StoredTensor {
  if (offset === 0) return tensor
  const values = Float32Array.from(tensor.weight.data, (value) => value + offset)
  return { dtype: 'fp32', shape: tensor.shape, data: new Uint8Array(values.buffer) }
}

class EditBuilder {
  constructor(readonly edit: Edit) {}

  add(part: EditPart, key: string): void {
    this.edit.parts.push(part)
    this.edit.keys.push(`${key}@${part.start}`)
  }

  replace(tensor: StoredTensor, isTransposed: boolean, key: string): void {
    this.#setValues({ tensor, isTransposed, lines: undefined }, `${key}${isTransposed ? 'ᵀ' : ''}`)
  }

  replaceLines(tensor: StoredTensor, axis: 0 | 1, indices: readonly number[], key: string): void {
    this.#setValues({ tensor, isTransposed: false, lines: { axis, indices } }, `${key}/${axis}`)
  }

  /** The elements of a vector from `start` on. Several tensors can each replace their own. */
  replaceElements(tensor: StoredTensor, start: number, key: string): void {
    const { dtype, data, shape } = tensor
    const indices = Array.from({ length: shape[0] }, (_, i) => start + i)
    const { values: before } = this.edit
    const held = before?.lines
    if (before === undefined || held === undefined) {
      this.#setValues({ tensor, isTransposed: false, lines: { axis: 1, indices } }, key)
      return
    }
    if (before.tensor.dtype !== dtype || held.indices.some((index) => indices.includes(index))) {
      refuse(this.edit.name, 'two parts of the adapters replace its values, or have them in different types')
    }
    const both = [...held.indices, ...indices]
    this.edit.values = {
      tensor: { dtype, shape: [both.length], data: concatBytes([before.tensor.data, data]) },
      isTransposed: false,
      lines: { axis: 1, indices: both },
    }
    this.edit.keys.push(key)
  }

  #setValues(values: NewValues, key: string): void {
    if (this.edit.values !== undefined) refuse(this.edit.name, 'two parts of the adapters replace its values')
    this.edit.values = values
    this.edit.keys.push(key)
  }
}

/** s·biasB as a product of 1 (1, 1) and biasB (d, 1): a bias is a weight of one input. */
function biasPart(biasB: FloatArray, scale: number, start: number): EditPart {
  const weightA: Matrix = { data: Float32Array.of(1), shape: [1, 1] }
  const weightB: Matrix = { data: biasB, shape: [biasB.length, 1] }
  return { name: undefined, weightA, weightB, scale, magnitude: undefined, start }
}

/** Throws UnsupportedError for changes that are no sum, combined with other changes of the same values. */
function refuseCombination({ name, parts, values }: Edit): void {
  const end = ({ start, weightB }: EditPart) => start + weightB.shape[0]
  const isMixed = parts.some(({ magnitude, start }, i) => {
    return (
      magnitude !== undefined && parts.some((other, j) => j !== i && other.start < end(parts[i]) && start < end(other))
    )
  })
  if (isMixed) refuse(name, 'a DoRA layer and another adapter’s layer on one weight cannot be merged together')
  if (values?.lines !== undefined && parts.length > 0) {
    refuse(name, 'replaced rows (trainable_token_indices) and a layer on one tensor cannot be merged together')
  }
}

function noBias(name: string): MismatchError {
  return new MismatchError({
    where: name,
    what: 'the adapter has a bias of B (lora_bias), but the graph has no bias here to add it to',
  })
}

/** Throws UnsupportedError for a weight whose values cannot be changed. */
function refuseUnmergeable({ node, form }: Linear): void {
  const hasAlpha = node.opType === 'Gemm' && floatAttribute(node, 'alpha', 1) !== 1
  if (!form.isQuantized && !hasAlpha) return
  throw new UnsupportedError({
    where: `node ${node.name}`,
    what: hasAlpha
      ? 'a Gemm whose alpha is not 1 cannot be merged into'
      : 'values of a quantized weight cannot be replaced',
    expected: 'a weight in f32, f16 or bf16',
    got: hasAlpha ? `alpha ${floatAttribute(node, 'alpha', 1)}` : node.opType,
    hint: hasAlpha ? 'Use the adapter at run time' : 'Merge into the unquantized export and quantize the result',
  })
}
