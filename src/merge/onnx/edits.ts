// Plans the changes that adapters make to an ONNX graph, from their placements. Several places may read the same
// initializer.

import { type ByteSource, concatBytes, MemorySource } from '../../core/base/bytes.js'
import { decodeWeights, encodeFloats, encodeWeights, sizeOf, type WeightDtype } from '../../core/base/dtype.js'
import { LowrankError, UnsupportedError } from '../../core/base/errors.js'
import { groupBy } from '../../core/base/group.js'
import { elementCount, transpose } from '../../core/base/tensor.js'
import type { OpenPart } from '../../lora/peft/tensors.js'
import { toFloats } from '../../model/inject/to-floats.js'
import { FLOAT_DTYPES } from '../../model/match/forms/float-product.js'
import type { Linear } from '../../model/match/linears.js'
import { type BiasPlace, type Place, storedValue } from '../../model/match/parameters.js'
import { type RowOrder, rowOfPeft } from '../../model/place/experts.js'
import { type ReadPart, readFacts } from '../../model/place/facts.js'
import { place } from '../../model/place/place.js'
import {
  type LayerPlacement,
  type PlacedModel,
  type Placement,
  placedAdapter,
  type WeightPlacement,
} from '../../model/place/placement.js'
import type { TensorProto } from '../../onnx/format/gen/onnx_pb.js'
import { OnnxModel } from '../../onnx/format/model.js'
import { byteLengthOf, dataTypeName, dimsOf, inlineBytes, isExternal, weightRange } from '../../onnx/format/tensors.js'
import type { Graph } from '../../onnx/view/graph.js'
import type { BaseReplacement, Factor, GraphShare, LayerFactors, OpenAdapters } from '../plan/adapters.js'
import { expertLayer, layerOfRows } from '../plan/experts.js'
import type { FitProblems, PlacedPart } from '../plan/fit-problems.js'
import type { OutputTensor } from '../plan/layout.js'
import { joinPlaced, type Placed, placedAt } from '../plan/place-replacements.js'
import { refuseCombination } from '../plan/plan.js'
import type { QuantizedPart } from './quantized.js'

/** A graph that is merged into, and the model that holds its weights. */
export interface MergedGraph extends PlacedModel {
  readonly onnx: OnnxModel
}

export interface Edit extends Place {
  readonly name: string
  /** An initializer, or a Constant node's output. */
  weight: string
  base: OutputTensor
  readonly layers: LayerFactors[]
  placed: Placed | undefined
  /** Names everything that is done at this place. Places with equal lists can keep sharing a tensor. */
  readonly keys: string[]
}

/** A quantized weight that is stored as floats, and what its place was before. */
interface Floats {
  readonly linear: Linear
  readonly edit: Edit
  readonly location: string
  readonly source: ByteSource
}

/**
 * Plans what the adapters' parts change. Reads weights only to see whether embeddings are tied, and whether a tensor of
 * the adapter is a copy of the dequantized base. All problems go to `fit`. `isElsewhere` is true for tensors of a new
 * head, which need no place in the graph.
 */
export async function planEdits(
  model: MergedGraph,
  shares: readonly GraphShare[],
  opened: OpenAdapters,
  fit: FitProblems,
  isElsewhere: (share: GraphShare, tensor: string) => boolean = () => false,
) {
  const plan = new EditPlan(model, opened)
  const all = await Promise.all(
    shares.map(async (share) => {
      const isHere = ({ kind, name }: OpenPart) => kind !== 'replacement' || !isElsewhere(share, name)
      const adapter = placedAdapter(share.adapter, share.parts.filter(isHere))
      const facts = await readFacts(model.onnx, model, adapter, linesOf(opened, share.index))
      const alone = (name: string) =>
        place(model, { ...adapter, parts: adapter.parts.filter((part) => part.name === name) }, facts)
      const { placements, problems } = place(model, adapter, facts)
      return { share, alone, problems, byPart: groupBy(placements, ({ part }) => part) }
    }),
  )
  const isValues = ({ kind }: OpenPart) => kind === 'replacement' || kind === 'token-rows'
  const isLinear = ({ kind }: OpenPart) => kind === 'linear'
  const groups = [isValues, (part: OpenPart) => !isValues(part)]
  for (const isMeant of groups) {
    for (const { share, byPart, problems, alone } of all) {
      const parts = share.parts.filter(isMeant)
      const joint = problems.find(({ part }) => part === undefined)?.error
      if (joint !== undefined && parts.some(isLinear)) fit.problems.push(joint)
      for (const part of [...parts.filter(isLinear), ...parts.filter((part) => !isLinear(part))]) {
        // If some layer does not fit, place each layer alone to find out which.
        const isAlone = joint !== undefined && isLinear(part)
        if (isAlone && !fit.listsAll) continue
        const own = isAlone ? alone(part.name) : { placements: byPart.get(part.name) ?? [], problems }
        const problem = own.problems.find((found) => found.part === part.name)?.error
        if (problem !== undefined && !isAlone) fit.problems.push(problem)
        await plan.note(fit, part, problem, async () => {
          for (const at of own.placements) await plan.add(share, part, at)
        })
      }
    }
  }
  const edits = plan.all()
  for (const { name, layers, placed } of edits) fit.note(() => refuseCombination(name, layers, placed))
  return { edits, quantized: plan.quantized, floats: [...plan.floats.values()], notes: plan.notes }
}

/** Reads lines of the tensors that an adapter replaces. */
export function linesOf({ replacements, sources }: OpenAdapters, index: number): ReadPart {
  return async (part, first, count) => {
    const { info, source } = replacementOf(replacements, index, part)
    const rowBytes = info.byteLength / info.shape[0]
    const bytes = await sources[source].read(info.offset + first * rowBytes, count * rowBytes)
    return decodeWeights(bytes, info.dtype as WeightDtype)
  }
}

function replacementOf(all: readonly BaseReplacement[], index: number, tensor: string, isRows = false) {
  const isMeant = ({ rows }: BaseReplacement) => (rows !== undefined) === isRows
  return all.find((given) => given.adapter === index && given.tensor === tensor && isMeant(given))!
}

/** Turns the quantized layers that the plan says into layers of floats. Returns the model with their files. */
export function storeFloats(onnx: OnnxModel, graph: Graph, floats: readonly Floats[]): OnnxModel {
  const files = new Map(onnx.files)
  for (const { linear, edit, location, source } of floats) {
    const made = toFloats(graph, linear, { location, byteLength: source.byteLength })
    Object.assign(edit, made, {
      base: { ...edit.base, name: made.weight, base: { ...edit.base.base, name: made.weight } },
    })
    files.set(location, source)
  }
  return floats.length === 0 ? onnx : new OnnxModel(onnx.name, onnx.fileName, onnx.proto, files)
}

class EditPlan {
  readonly #byPlace = new Map<Place['node'], Map<number, Edit>>()
  readonly #stored = new Map<string, OutputTensor>()
  readonly floats = new Map<string, Floats>()
  readonly quantized: QuantizedPart[] = []
  /** Lines that say which quantized weights are now stored as floats. */
  readonly notes: string[] = []
  /** The first tensor that the current part changes, for the report. */
  #touched: PlacedPart['info']

  constructor(
    private readonly model: MergedGraph,
    private readonly opened: OpenAdapters,
  ) {}

  all(): Edit[] {
    return [...this.#byPlace.values()].flatMap((edits) => [...edits.values()])
  }

  async note(
    fit: FitProblems,
    part: OpenPart,
    before: LowrankError | undefined,
    work: () => Promise<void>,
  ): Promise<void> {
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

  async add(share: GraphShare, part: OpenPart, at: Placement): Promise<void> {
    const { index } = share
    if (at.kind === 'layer') this.#addLayer(share, part, at)
    else if (at.kind === 'kernel') {
      const { weight, bias } = this.#layersOf(share, part)
      addLayer(this.#at(at, `${part.name}.weight`), weight, 0, `${index}:${part.name}`)
      this.#addBias(share, part, bias, at.bias)
    } else if (at.kind === 'stack') {
      const { weight } = this.#layersOf(share, part)
      const { isInputMajor, shape } = at.stack
      const edit = this.#at(at, part.name)
      edit.layers.push({ ...weight, b: this.#inOrder(weight.b, at.order), isInputMajor, shape, report: part.name })
      edit.keys.push(`${index}:${part.name}`)
    } else if (at.kind === 'weight') await this.#replaceWeight(share, part, at)
    else {
      const values = replacementOf(this.opened.replacements, index, part.name)
      const edit = this.#at(at, part.name)
      const key = `${index}=${part.name}`
      if (at.start === undefined) replaceTensor(edit, this.opened.sources, this.#shifted(values, at.offset), false, key)
      else {
        const rows = Array.from({ length: values.info.shape[0] }, (_, i) => at.start! + i)
        put(edit, placedAt(values.source, values.info, rows), key)
      }
    }
  }

  #addLayer(share: GraphShare, part: OpenPart, at: LayerPlacement): void {
    const { linear, name, start, d, expert, order } = at
    const key = `${share.index}:${linear.name}`
    const inFloats = this.floats.has(linear.output)
    if (linear.form.isQuantized && !inFloats) {
      this.#touched ??= { name: linear.weight, shape: [linear.d, linear.k], dtype: linear.form.name }
      this.quantized.push({ share, at })
      return
    }
    const isInputMajor = !linear.transposed
    const { weight: whole, bias } = this.#layersOf(share, part)
    if (expert !== undefined) {
      const ofExpert = expertLayer({ ...whole, b: this.#inOrder(whole.b, order) }, expert, start, d)
      const edit = this.#weightOf(at, linear.name)
      addLayer(edit, { ...ofExpert, isInputMajor, name }, 0, `${key}/${expert}/${start}`)
      return
    }
    const layer = { ...(d === whole.d ? whole : layerOfRows(whole, start, d)), name, isInputMajor }
    const edit = this.#weightOf(at, linear.form.isLookup ? linear.name : part.name)
    addLayer(edit, layer, linear.fused?.start ?? 0, key)
    if (bias !== undefined && inFloats) {
      const what = 'a bias of B (lora_bias) cannot be merged into a layer whose integers become floats'
      throw new UnsupportedError({ where: part.name, what })
    }
    this.#addBias(share, part, bias && (d === whole.d ? bias : layerOfRows(bias, start, d)), at.bias)
  }

  #addBias({ index }: GraphShare, { name }: OpenPart, bias: LayerFactors | undefined, at: BiasPlace | undefined): void {
    if (bias !== undefined && at !== undefined)
      addLayer(this.#at(at, `${name}.bias`), bias, at.start, `${index}:${name}.bias`)
  }

  async #replaceWeight({ index }: GraphShare, part: OpenPart, at: WeightPlacement): Promise<void> {
    const { linear, isInputMajor, tokens } = at
    const { replacements, sources } = this.opened
    const edit = at.inFloats ? await this.#floatsOf(at) : this.#weightOf(at, linear.name)
    if (tokens !== undefined) {
      const rows = replacementOf(replacements, index, `${part.module}.weight`, true)
      replaceRows(edit, rows, linear.transposed === (linear.form.isLookup === true), `${index}#${part.module}`)
      return
    }
    const values = replacementOf(replacements, index, part.name)
    replaceTensor(edit, sources, values, isInputMajor === linear.transposed, `${index}=${part.name}`)
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

  #layersOf({ index }: GraphShare, part: OpenPart): { weight: LayerFactors; bias: LayerFactors | undefined } {
    const { layers, problems } = this.opened
    const nameOf = ({ name, tensor, experts }: LayerFactors) => (experts === undefined ? name : `${name}.${tensor}`)
    const ofPart = layers.filter((layer) => nameOf(layer) === part.name && layer.adapter === index)
    const weight = ofPart.find(({ tensor }) => tensor !== 'bias')
    // If the layer is missing, its factors could not be merged. Throw that problem.
    if (weight === undefined)
      throw problems.find(({ where }) => where === part.name || where === part.module) ?? problems[0]
    return { weight, bias: ofPart.find(({ tensor }) => tensor === 'bias') }
  }

  /** The place of a quantized weight that is stored as floats, which can hold any values. */
  async #floatsOf({ linear, node, input }: WeightPlacement): Promise<Edit> {
    const { graph, onnx } = this.model
    const { name, dataType, transposed, k, d, layout, output } = linear
    const known = this.floats.get(output)
    if (known !== undefined) {
      this.#touched ??= known.edit.base.base
      return known.edit
    }
    const shape = transposed ? [d, k] : [k, d]
    const [dtype, byteLength] = [FLOAT_DTYPES[dataType]!, byteLengthOf(dataType, shape)!]
    const read = await linear.form.openLines(onnx, graph, linear)
    const make = async () => encodeFloats(await read(0, shape[0]), dtype)
    const source = madeSource(name, byteLength, make)
    const weight = `${name}.weight`
    const base = { name: weight, dtype, shape, offset: 0, byteLength }
    const tensor = { name: weight, dtype, base, source: this.opened.sources.push(source) - 1, layers: [], rows: [] }
    const edit = this.#edit({ node, input }, weight, output, { ...tensor, isReplaced: false })
    this.floats.set(output, { linear, edit, location: `${name}/floats`, source })
    const { dataType: type, ...stored } = graph.constant(linear.weight) as TensorProto
    const before = byteLengthOf(type, stored.dims.map(Number)) ?? 0
    const [was, is] = [before, byteLength].map((bytes) => `${(bytes / 1e6).toFixed(1)} MB`)
    this.notes.push(
      `${name}: ${layout} cannot hold the adapter's values, so they are stored as floats (${is} instead of ${was})`,
    )
    return edit
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

  #weightOf(at: LayerPlacement | WeightPlacement, module: string): Edit {
    const { edit } = this.floats.get(at.linear.output) ?? {}
    if (edit !== undefined) this.#touched ??= edit.base.base
    return edit ?? this.#at(at, `${module}.weight`)
  }

  #at({ node, input }: Place, name: string): Edit {
    const weight = storedValue(this.model.graph, node.input[input])
    const base = this.#stored.get(weight) ?? this.#storedTensor(weight, node.name)
    this.#stored.set(weight, base)
    return this.#edit({ node, input }, name, weight, base)
  }

  #edit({ node, input }: Place, name: string, weight: string, base: OutputTensor): Edit {
    const ofNode = this.#byPlace.get(node) ?? new Map<number, Edit>()
    this.#byPlace.set(node, ofNode)
    const edit = ofNode.get(input) ?? { node, input, name, weight, base, layers: [], placed: undefined, keys: [] }
    ofNode.set(input, edit)
    this.#touched ??= base.base
    return edit
  }

  #storedTensor(weight: string, node: string): OutputTensor {
    const { onnx: model, graph } = this.model
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
