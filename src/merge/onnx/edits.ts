// Collects the changes that adapters make to an ONNX graph, place by place. A place is an input of a node. Several
// places may read the same initializer.

import { type ByteSource, concatBytes, MemorySource } from '../../core/base/bytes.js'
import { decodeWeights, encodeFloats, encodeWeights, sizeOf, type WeightDtype } from '../../core/base/dtype.js'
import { attempt, LowrankError, MismatchError, UnsupportedError } from '../../core/base/errors.js'
import { elementCount, transpose } from '../../core/base/tensor.js'
import type { FactorView, ParameterView, ReplacementView, TokenRowsView } from '../../lora/part.js'
import type { AdapterTensor } from '../../lora/peft/keys.js'
import type { OpenPart } from '../../lora/peft/tensors.js'
import { isVocabularyModule } from '../../lora/peft/tied.js'
import { toFloats } from '../../model/inject/to-floats.js'
import { isBaseCopy } from '../../model/match/base-copies.js'
import { placeExperts, type RowOrder, rowOfPeft } from '../../model/match/experts.js'
import { FLOAT_DTYPES } from '../../model/match/forms/float-product.js'
import { findEmbeddings } from '../../model/match/forms/lookup.js'
import { findLinears, type Linear, type ModuleMap } from '../../model/match/linears.js'
import { ofModule } from '../../model/match/module-names.js'
import { biasOf, findConvolutions, type Place, shapeError, storedValue } from '../../model/match/parameters.js'
import { placeLayers } from '../../model/match/place-adapter.js'
import {
  embeddingsOf,
  type ModelPlaces,
  placeReplacement,
  placeTokenRows,
  refuse,
  type StoredPlace,
} from '../../model/match/stored-places.js'
import type { TensorProto } from '../../onnx/format/gen/onnx_pb.js'
import { OnnxModel } from '../../onnx/format/model.js'
import { byteLengthOf, dataTypeName, dimsOf, inlineBytes, isExternal, weightRange } from '../../onnx/format/tensors.js'
import { floatAttribute } from '../../onnx/view/attributes.js'
import type { BaseReplacement, Factor, GraphShare, LayerFactors, OpenAdapters } from '../plan/adapters.js'
import { expertLayer, layerOfRows } from '../plan/experts.js'
import type { FitProblems, PlacedPart } from '../plan/fit-problems.js'
import type { OutputTensor } from '../plan/layout.js'
import { joinPlaced, type Placed, placedAt } from '../plan/place-replacements.js'
import { refuseCombination } from '../plan/plan.js'
import type { QuantizedPart } from './quantized.js'

type WeightPlace = Extract<StoredPlace, { kind: 'weight' }>

export interface Edit extends Place {
  readonly name: string
  /** An initializer, or a Constant node's output. */
  readonly weight: string
  readonly base: OutputTensor
  readonly layers: LayerFactors[]
  placed: Placed | undefined
  /** Names everything that is done at this place. Places with equal lists can keep sharing a tensor. */
  readonly keys: string[]
}

/**
 * Finds the places of the adapters' parts. Reads weights only to see whether embeddings are tied, and whether a tensor
 * of the adapter is a copy of the dequantized base; if it is not, the weight is stored as floats. All problems go to
 * `fit`. `isElsewhere` is true for tensors of a new head, which need no place in the graph.
 */
export async function collectEdits(
  places: ModelPlaces,
  shares: readonly GraphShare[],
  opened: OpenAdapters,
  fit: FitProblems,
  modules?: ModuleMap,
  isElsewhere: (share: GraphShare, tensor: string) => boolean = () => false,
) {
  const edits = new Edits(places, opened, modules)
  const isValues = ({ kind }: OpenPart) => kind === 'replacement' || kind === 'token-rows'
  const order = [
    ...shares.map((share) => ({ share, parts: share.parts.filter(isValues), hasLinears: false })),
    ...shares.map((share) => ({ share, parts: share.parts.filter((part) => !isValues(part)), hasLinears: true })),
  ]
  for (const { share, parts, hasLinears } of order) {
    if (hasLinears) await edits.addLinears(share, fit)
    for (const part of parts) {
      if (part.kind === 'linear') continue
      await edits.note(fit, part, async () => {
        if (part.kind === 'embedding') edits.addEmbedding(share, part)
        else if (part.kind === 'convolution') edits.addConvolution(share, part)
        else if (part.kind === 'parameter') edits.addExperts(share, part)
        else if (part.kind === 'token-rows') await edits.addRows(share, part)
        else if (part.kind === 'replacement' && !isElsewhere(share, part.name)) await edits.addReplacement(share, part)
      })
    }
  }
  const all = edits.all()
  for (const { name, layers, placed } of all) fit.note(() => refuseCombination(name, layers, placed))
  return { edits: all, quantized: edits.quantized, places: edits.places, notes: edits.notes }
}

type FactorPart = FactorView<AdapterTensor>

class Edits {
  readonly #byPlace = new Map<Place['node'], Map<number, Edit>>()
  readonly #stored = new Map<string, OutputTensor>()
  readonly quantized: QuantizedPart[] = []
  /** Lines that say which quantized weights are now stored as floats. */
  readonly notes: string[] = []
  /** The first tensor that the current part changes, for the report. */
  #touched: PlacedPart['info']

  constructor(
    /** The places of the graph in its current state. */
    public places: ModelPlaces,
    private readonly opened: OpenAdapters,
    private readonly modules: ModuleMap | undefined,
  ) {}

  all(): Edit[] {
    return [...this.#byPlace.values()].flatMap((edits) => [...edits.values()])
  }

  async note(fit: FitProblems, part: OpenPart, work: () => void | Promise<void>, before?: LowrankError): Promise<void> {
    this.#touched = undefined
    let problem = before
    try {
      if (before === undefined) await work()
    } catch (error) {
      if (!(error instanceof LowrankError)) throw error
      problem = error
      fit.problems.push(error)
    }
    const replacement = part.kind === 'replacement' ? { ...part.tensors.weight, name: part.name } : undefined
    const name = part.kind === 'token-rows' ? part.module : part.name
    fit.parts.push({ name, info: problem === undefined ? (this.#touched ?? replacement) : undefined, problem })
  }

  async addLinears(share: GraphShare, fit: FitProblems): Promise<void> {
    const { graph, linears } = this.places
    const wanted = share.parts.flatMap((part) => {
      if (part.kind !== 'linear') return []
      const { weightA, weightB } = part.tensors
      return { name: part.name, d: weightB.shape[0], k: weightA.shape[1], part }
    })
    if (wanted.length === 0) return
    const { value: placed, problems } = attempt(() => placeLayers(graph, linears, wanted))
    fit.problems.push(...problems)
    if (placed === undefined && !fit.listsAll) return
    for (const layer of wanted) {
      // If some layer does not fit, place each layer alone to find out which.
      const alone = placed === undefined ? attempt(() => placeLayers(graph, linears, [layer])) : undefined
      const mine = alone?.value ?? placed?.filter(({ part }) => part.layer === layer) ?? []
      const add = () => {
        for (const { part, linear } of mine) this.#addLinear(share, layer.part, part, linear)
      }
      await this.note(fit, layer.part, add, alone?.problems[0])
    }
  }

  #addLinear(
    share: GraphShare,
    { name }: FactorPart,
    part: { readonly name: string; readonly d: number; readonly start: number },
    linear: Linear,
  ): void {
    const { index } = share
    const { graph } = this.places
    const { weight: whole, bias: wholeBias } = this.#layersOf(share, name)
    const ofPart = part.d === whole.d ? whole : layerOfRows(whole, part.start, part.d)
    const { isQuantized } = linear.form
    const start = linear.fused?.start ?? 0
    if (isQuantized) {
      // Branches also add the bias, so there is nothing more to do.
      this.#addQuantized({ share, name, part, linear })
      return
    }
    const layer = { ...ofPart, name: part.name, isInputMajor: !linear.transposed }
    addLayer(this.#weightOf(linear, name), layer, start, `${index}:${linear.name}`)
    if (wholeBias === undefined) return
    const bias = part.d === whole.d ? wholeBias : layerOfRows(wholeBias, part.start, part.d)
    this.#addBias(share, name, bias, biasOf(graph, linear))
  }

  #addQuantized(part: QuantizedPart): void {
    const { form, weight, k, d } = part.linear
    this.#touched ??= { name: weight, shape: [d, k], dtype: form.name }
    this.quantized.push(part)
  }

  addEmbedding(share: GraphShare, { name, tensors: { weightA, weightB } }: FactorPart): void {
    const { weight: layer } = this.#layersOf(share, name)
    for (const linear of embeddingsOf(this.places, name, [weightA.shape[1], weightB.shape[0]])) {
      const { form, transposed } = linear
      if (form.isQuantized) this.#addQuantized({ share, name, part: { name, d: layer.d, start: 0 }, linear })
      else {
        const stored = { ...layer, isInputMajor: !transposed }
        addLayer(this.#weightOf(linear, linear.name), stored, 0, `${share.index}:${name}`)
      }
    }
  }

  addConvolution(share: GraphShare, { name }: FactorPart): void {
    const { weight: layer, bias } = this.#layersOf(share, name)
    const places = ofModule(findConvolutions(this.places.graph), name)
    if (places.length === 0) refuse(name, 'the graph has no convolution of this name')
    for (const place of places) {
      // Convolutions with several groups were refused earlier.
      if (place.groups !== 1 || place.shape.join() !== layer.shape.join()) {
        throw shapeError(name, place.shape, layer.shape)
      }
      // PEFT applies A without the base's dilation, which no change of the weight can express.
      if (place.dilations.some((dilation) => dilation !== 1)) refuse(name, 'a dilated convolution cannot be merged')
      addLayer(this.#at(place, `${name}.weight`), layer, 0, `${share.index}:${name}`)
      if (bias === undefined) continue
      this.#addBias(share, name, bias, place.bias && { node: place.node, input: place.bias, start: 0 })
    }
  }

  addExperts(share: GraphShare, { name, module, experts }: ParameterView<AdapterTensor>): void {
    const { graph, linears, config } = this.places
    const { layers, problems } = this.opened
    const isPart = (layer: LayerFactors) => layer.adapter === share.index && `${layer.name}.${layer.tensor}` === name
    const whole = layers.find(isPart)
    if (whole === undefined) throw problems.find(({ where }) => where?.includes(module)) ?? problems[0]
    const place = placeExperts(graph, linears, { name, experts, d: whole.d, k: whole.k }, config)
    const key = `${share.index}:${name}`
    const layer = { ...whole, b: this.#inOrder(whole.b, place.order) }
    if (place.stack !== undefined) {
      const { isInputMajor, shape } = place.stack
      const edit = this.#at(place.stack, name)
      edit.layers.push({ ...layer, isInputMajor, shape, report: name })
      edit.keys.push(key)
    }
    for (const ofExpert of place.layers) {
      const { linear, expert, start } = ofExpert
      if (linear.form.isQuantized) {
        this.#addQuantized({ share, name, part: { name: linear.name, d: linear.d, start, ofExpert, ...place }, linear })
        continue
      }
      const stored = { ...expertLayer(layer, expert, start, linear.d), isInputMajor: !linear.transposed }
      addLayer(this.#weightOf(linear, linear.name), { ...stored, name: linear.name }, 0, `${key}/${expert}/${start}`)
    }
  }

  /** B with its rows in the order that the graph has. */
  #inOrder(b: Factor, order: RowOrder): Factor {
    if (order === undefined) return b
    const { sources } = this.opened
    const rowBytes = b.columns * sizeOf(b.dtype)
    const source = madeSource(b.name, b.rows * rowBytes, async () => {
      const bytes = await sources[b.source].read(b.offset, b.rows * rowBytes)
      const rows = Array.from({ length: b.rows }, (_, row) => rowOfPeft(order, row, b.rows) * rowBytes)
      return concatBytes(rows.map((at) => bytes.subarray(at, at + rowBytes)))
    })
    return { ...b, offset: 0, source: sources.push(source) - 1 }
  }

  #addBias({ index }: GraphShare, name: string, bias: LayerFactors, place?: (Place & { start: number }) | 0): void {
    if (!place) {
      throw new MismatchError({
        where: name,
        what: 'the adapter has a bias of B (lora_bias), but the graph has no bias here to add it to',
      })
    }
    addLayer(this.#at(place, `${name}.bias`), bias, place.start, `${index}:${name}.bias`)
  }

  async addReplacement({ index, adapter }: GraphShare, part: ReplacementView<AdapterTensor>): Promise<void> {
    const { name } = part
    const key = `${index}=${name}`
    const values = this.#replacement(index, name, false)
    const { sources } = this.opened
    const view = { ...part.tensors.weight, ...part, shape: this.#shapeBefore(part) }
    const isReplaced = (tensor: string) => adapter.parts().some(({ name: replacedName }) => replacedName === tensor)
    for (const place of await placeReplacement(this.places, view, adapter.config.fanInFanOut, isReplaced)) {
      if (place.kind === 'weight') {
        const { module, isInputMajor } = place
        if (!part.isTrained && (await this.#isCopy(place, values))) continue
        const linear = await this.#inFloats(place.linear)
        const isTurned = isInputMajor === linear.transposed
        replaceTensor(this.#weightOf(linear, module), sources, values, isTurned, key)
      } else if (place.kind === 'bias') {
        const { bias, linear } = place
        const edit = this.#at(bias, name)
        if (bias.width === linear.d) replaceTensor(edit, sources, values, false, key)
        else {
          const { shape } = values.info
          const rows = Array.from({ length: shape[0] }, (_, i) => bias.start + i)
          put(edit, placedAt(values.source, values.info, rows), key)
        }
      } else replaceTensor(this.#at(place.place, name), sources, this.#shifted(values, place.offset), false, key)
    }
  }

  /** Returns the shape of a replaced tensor, with as many rows as the base has if its vocabulary has grown. */
  #shapeBefore({ name, module, tensors }: ReplacementView<AdapterTensor>): readonly number[] {
    const { shape } = tensors.weight
    if (shape.length !== 2 || !name.endsWith('.weight') || !isVocabularyModule(module)) return shape
    const [embedding] = ofModule(this.places.embeddings, module)
    const [head] = ofModule(this.places.linears, module)
    const rows = head?.isHead && head.k === shape[1] ? head.d : shape[0]
    return embedding?.d === shape[1] ? [embedding.k, shape[1]] : [rows, shape[1]]
  }

  /**
   * Replaces rows of an embedding or of the output layer. If the two are tied, rows of the embedding are replaced in
   * the output layer too, unless the adapter has rows for it.
   */
  async addRows({ index, adapter }: GraphShare, part: TokenRowsView<AdapterTensor>): Promise<void> {
    const { module, tensors } = part
    const key = `${index}#${module}`
    const rows = this.#replacement(index, `${module}.weight`, true)
    const view = { ...tensors.weight, ...part }
    const isReplaced = (tied: string) => {
      return adapter.parts().some((view) => view.kind === 'token-rows' && view.module === tied)
    }
    for (const place of await placeTokenRows(this.places, view, isReplaced)) {
      const linear = await this.#inFloats(place)
      const isByColumns = linear.transposed === (linear.form.isLookup === true)
      replaceRows(this.#weightOf(linear, linear.name), rows, isByColumns, key)
    }
  }

  #layersOf({ index }: GraphShare, module: string): { weight: LayerFactors; bias: LayerFactors | undefined } {
    const { layers, problems } = this.opened
    const ofModule = layers.filter(({ name, adapter }) => name === module && adapter === index)
    const weight = ofModule.find(({ tensor }) => tensor === 'weight')
    // If the layer is missing, its factors could not be merged. Throw that problem.
    if (weight === undefined) throw problems.find(({ where }) => where === module) ?? problems[0]
    return { weight, bias: ofModule.find(({ tensor }) => tensor === 'bias') }
  }

  #replacement(index: number, tensor: string, isRows: boolean): BaseReplacement {
    const { replacements } = this.opened
    return replacements.find((replacement) => {
      return (
        replacement.adapter === index && replacement.tensor === tensor && (replacement.rows !== undefined) === isRows
      )
    })!
  }

  async #isCopy(place: WeightPlace, { info, source }: BaseReplacement): Promise<boolean> {
    const { k, d } = place.linear
    if (elementCount(info.shape) !== k * d) return false
    const { model, graph } = this.places
    const rowBytes = info.byteLength / info.shape[0]
    return isBaseCopy({ model, graph }, place, async (first, count) => {
      const bytes = await this.opened.sources[source].read(info.offset + first * rowBytes, count * rowBytes)
      return decodeWeights(bytes, info.dtype as WeightDtype)
    })
  }

  /** Turns a quantized layer into a layer of floats, which can hold any values. */
  async #inFloats(linear: Linear): Promise<Linear> {
    if (!linear.form.isQuantized) return linear
    const { model, graph } = this.places
    const { name, dataType, transposed, k, d, layout } = linear
    const dtype = FLOAT_DTYPES[dataType] ?? refuse(name, 'its type of floats cannot be written', dataTypeName(dataType))
    const shape = transposed ? [d, k] : [k, d]
    const byteLength = byteLengthOf(dataType, shape)!
    const stored = dimsOf(graph.constant(linear.weight) as TensorProto)
    const before = byteLengthOf((graph.constant(linear.weight) as TensorProto).dataType, stored) ?? 0
    const read = await linear.form.openLines(model, graph, linear)
    const source = madeSource(name, byteLength, async () => encodeFloats(await read(0, shape[0]), dtype))
    const weight = toFloats(graph, linear, { location: `${name}/floats`, byteLength })
    this.opened.sources.push(source)
    const files = new Map(model.files).set(`${name}/floats`, source)
    const withFloats = new OnnxModel(model.name, model.fileName, model.proto, files)
    const [was, is] = [before, byteLength].map((bytes) => `${(bytes / 1e6).toFixed(1)} MB`)
    this.notes.push(
      `${name}: ${layout} cannot hold the adapter's values, so they are stored as floats (${is} instead of ${was})`,
    )
    this.places = {
      ...this.places,
      model: withFloats,
      linears: findLinears(graph, this.modules),
      embeddings: findEmbeddings(graph),
    }
    return [...this.places.linears, ...this.places.embeddings].find((linear) => linear.weight === weight)!
  }

  #shifted(values: BaseReplacement, offset: number): BaseReplacement {
    if (offset === 0) return values
    const { info, source } = values
    const { shape, name } = info
    const byteLength = 4 * elementCount(shape)
    const made = madeSource(name, byteLength, async () => {
      const bytes = await this.opened.sources[source].read(info.offset, info.byteLength)
      const numbers = Float32Array.from(decodeWeights(bytes, info.dtype as WeightDtype), (value) => value + offset)
      return new Uint8Array(numbers.buffer)
    })
    const floatInfo = { name, dtype: 'fp32', shape, offset: 0, byteLength } as const
    return { ...values, info: floatInfo, source: this.opened.sources.push(made) - 1 }
  }

  #weightOf(linear: Linear, module: string): Edit {
    refuseUnmergeable(linear)
    return this.#at({ node: linear.node, input: linear.form.isLookup ? 0 : 1 }, `${module}.weight`)
  }

  #at({ node, input }: Place, name: string): Edit {
    const ofNode = this.#byPlace.get(node) ?? new Map<number, Edit>()
    this.#byPlace.set(node, ofNode)
    const weight = storedValue(this.places.graph, node.input[input])
    const base = this.#stored.get(weight) ?? this.#storedTensor(weight, node.name)
    this.#stored.set(weight, base)
    const edit = ofNode.get(input) ?? { node, input, name, weight, base, layers: [], placed: undefined, keys: [] }
    ofNode.set(input, edit)
    this.#touched ??= base.base
    return edit
  }

  #storedTensor(weight: string, node: string): OutputTensor {
    const { model, graph } = this.places
    const { sources } = this.opened
    const stored = graph.constant(weight) as TensorProto
    const dtype = FLOAT_DTYPES[stored.dataType]
    if (dtype === undefined) {
      throw new UnsupportedError({
        where: `node ${node}`,
        what: 'its weight has a type that cannot be merged into',
        expected: 'FLOAT, FLOAT16 or BFLOAT16',
        got: dataTypeName(stored.dataType),
      })
    }
    const shape = dimsOf(stored)
    const range = isExternal(stored) ? weightRange(stored, model.name) : undefined
    const source =
      range === undefined
        ? sources.push(new MemorySource(inlineBytes(stored, model.name), stored.name)) - 1
        : sources.indexOf(model.file(range.location))
    const byteLength = byteLengthOf(stored.dataType, shape)!
    const base = { name: stored.name, dtype, shape, offset: range?.offset ?? 0, byteLength }
    return { name: weight, dtype, base, source, layers: [], isReplaced: false, rows: [] }
  }
}

export function addLayer(edit: Edit, layer: LayerFactors, start: number, key: string): void {
  const { shape } = edit.base.base
  const isBias = layer.tensor === 'bias'
  const outputs = layer.isInputMajor ? elementCount(shape.slice(1)) : shape[0]
  const count = isBias ? layer.k : layer.d
  const region = count === outputs ? undefined : { first: start, count }
  edit.layers.push({ ...layer, shape, region, report: isBias ? undefined : layer.name })
  edit.keys.push(`${key}@${start}`)
}

export function replaceTensor(
  edit: Edit,
  sources: ByteSource[],
  { info, source }: BaseReplacement,
  isTransposed: boolean,
  key: string,
): void {
  const { name, shape: stored } = edit.base.base
  const { dtype, offset, byteLength } = info
  const placedShape = isTransposed ? info.shape.toReversed() : info.shape
  const shape = elementCount(placedShape) === elementCount(stored) ? stored : placedShape
  const base = { name, dtype, shape, offset, byteLength }
  const turn = async () => {
    const data = decodeWeights(await sources[source].read(offset, byteLength), dtype as WeightDtype)
    return encodeWeights(transpose({ data, shape: [shape[1], shape[0]] }).data, dtype as WeightDtype)
  }
  const placed = isTransposed
    ? { base: { ...base, offset: 0 }, source: sources.push(madeSource(name, byteLength, turn)) - 1 }
    : { base, source }
  put(edit, { ...placed, isReplaced: true }, isTransposed ? `${key}ᵀ` : key)
}

export function replaceRows(
  edit: Edit,
  { info, source, rows = [] }: BaseReplacement,
  isInColumns: boolean,
  key: string,
) {
  const { name, offset, dtype } = info
  const values = { name, source, offset, dtype: dtype as WeightDtype, rows: rows.length, columns: info.shape[1] }
  if (isInColumns) put(edit, { columns: { indices: rows, values } }, `${key}/1`)
  else put(edit, placedAt(source, info, rows), `${key}/0`)
}

function put(edit: Edit, placed: Placed, key: string): void {
  // If the vocabulary has grown, PEFT saves the whole embedding and also the rows that it trained. The rows then
  // replace those of the saved embedding.
  const isOver =
    edit.placed?.base !== undefined &&
    placed.base === undefined &&
    edit.keys.some((earlier) => earlier.startsWith(`${Number.parseInt(key, 10)}=`))
  edit.placed = isOver ? { ...edit.placed, ...placed } : joinPlaced(edit.name, edit.placed, placed)
  edit.keys.push(key)
}

/** Makes a source whose bytes are computed when they are first read. */
function madeSource(name: string, byteLength: number, make: () => Promise<Uint8Array>): ByteSource {
  let made: Promise<ByteSource> | undefined
  const read = async (offset: number, length: number) => {
    made ??= make().then((bytes) => new MemorySource(bytes, name))
    return (await made).read(offset, length)
  }
  return { name, byteLength, read, close: async () => {} }
}

function refuseUnmergeable({ node }: Linear): void {
  const alpha = node.opType === 'Gemm' ? floatAttribute(node, 'alpha', 1) : 1
  if (alpha === 1) return
  throw new UnsupportedError({
    where: `node ${node.name}`,
    what: 'a Gemm whose alpha is not 1 cannot be merged into',
    got: `alpha ${alpha}`,
    hint: 'Use the adapter at run time',
  })
}
