// Says where the parts of an adapter go in a graph, from names and shapes alone. Nothing is read or changed.

import { isWeightDtype } from '../../core/base/dtype.js'
import { attempt, didYouMean, MismatchError, UnsupportedError } from '../../core/base/errors.js'
import { formatShape } from '../../core/base/tensor.js'
import { groupsRefusal } from '../../lora/kinds/convolution-factors.js'
import { moduleOf, rowsName } from '../../lora/part.js'
import { isVocabularyModule } from '../../lora/peft/tied.js'
import { dataTypeName } from '../../onnx/format/tensors.js'
import { floatAttribute } from '../../onnx/view/attributes.js'
import type { Graph } from '../../onnx/view/graph.js'
import { FLOAT_DTYPES } from '../match/forms/float-product.js'
import { findEmbeddings } from '../match/forms/lookup.js'
import { findPointwise } from '../match/forms/pointwise.js'
import { findLinears, type Linear, type ModuleMap, nodeScope } from '../match/linears.js'
import { endAlike, ofModule } from '../match/module-names.js'
import {
  biasOf,
  certainBias,
  checkVector,
  findConvolutions,
  type Place,
  placesOf,
  shapeError,
} from '../match/parameters.js'
import { placeExperts } from './experts.js'
import { placeLayers } from './linears.js'
import {
  copyAt,
  type Facts,
  type LayerPlacement,
  NO_FACTS,
  type PartOf,
  type PartShape,
  type Placed,
  type PlacedAdapter,
  type PlacedModel,
  type Placement,
  type PlaceProblem,
  type VectorPlacement,
  type WeightPlacement,
} from './placement.js'
import { type BaseTensor, normOffset, requireTrainable, UNKNOWN_OFFSET, untrainable } from './tensors.js'

/** Places the parts of an adapter, kind by kind. */
export function place(model: PlacedModel, adapter: PlacedAdapter, facts: Facts): Placed {
  const placements: Placement[] = []
  const problems: PlaceProblem[] = []
  const add = (part: string, work: () => readonly Placement[]) => {
    const { value = [], problems: found } = attempt(work)
    placements.push(...value)
    problems.push(...found.map((error) => ({ part, error })))
  }
  const partsOf = <Kind extends PartShape['kind']>(kind: Kind) =>
    adapter.parts.filter((part): part is PartOf<Kind> => part.kind === kind)
  const layers = partsOf('linear')
  const placed = attempt(() => (layers.length === 0 ? [] : placeLayers(model, layers)))
  problems.push(...placed.problems.map((error) => ({ part: layers.length === 1 ? layers[0].name : undefined, error })))
  for (const { part, linear } of placed.value ?? []) {
    const { layer, name, start, d } = part
    add(layer.name, () => [layerAt(model, { part: layer.name, linear, name, start, d }, layer)])
  }
  for (const part of partsOf('embedding')) add(part.name, () => placeEmbedding(model, part))
  for (const part of partsOf('convolution')) add(part.name, () => placeConvolution(model, part))
  for (const part of partsOf('parameter')) add(part.name, () => placeParameter(model, part))
  for (const part of partsOf('replacement')) add(part.name, () => placeTensor(model, part, adapter, facts))
  for (const part of partsOf('token-rows')) add(part.name, () => placeRows(model, part, adapter, facts))
  return { placements, problems }
}

/** The graph of a model, for placing. `modules` names modules that the graph does not. */
export function placedModel(
  graph: Graph,
  use: PlacedModel['use'],
  config: PlacedModel['config'] = {},
  modules?: ModuleMap,
): PlacedModel {
  return { graph, linears: findLinears(graph, modules), embeddings: findEmbeddings(graph), config, use }
}

type LayerShape = Omit<PartOf<'linear'>, 'kind' | 'module'>

/** Places factors of a training, which are known by their shapes. Throws the first problem. */
export function placeFactors(
  model: PlacedModel,
  factors: {
    readonly layers: readonly LayerShape[]
    readonly lookups?: readonly LayerShape[]
    readonly experts?: readonly Omit<PartOf<'parameter'>, 'kind' | 'module'>[]
  },
): readonly Placement[] {
  const { layers, lookups = [], experts = [] } = factors
  const parts: PartShape[] = [
    ...layers.map(({ name, d, k }) => ({ kind: 'linear', name, module: name, d, k }) as const),
    ...lookups.map(({ name, d, k }) => ({ kind: 'embedding', name, module: name, d, k }) as const),
    ...experts.map((of) => ({ ...of, kind: 'parameter', module: moduleOf(of.name) }) as const),
  ]
  return placedOrThrow(place(model, { parts, isConv1d: false, has: () => false }, NO_FACTS))
}

/** Returns the first place of a tensor of the base that a training changes. Throws if it cannot be trained. */
export function placeWhole(model: PlacedModel, { name, module, shape }: BaseTensor): WeightPlacement | VectorPlacement {
  const part = { kind: 'replacement', name, module, dtype: 'fp32', shape, isTrained: true } as const
  const [at] = placedOrThrow(place(model, { parts: [part], isConv1d: false, has: () => false }, NO_FACTS))
  return at as WeightPlacement | VectorPlacement
}

/** Throws the first problem. */
export function placedOrThrow({ placements, problems }: Placed): readonly Placement[] {
  if (problems.length > 0) throw problems[0].error
  return placements
}

function refuse(where: string, what: string, got?: string): never {
  throw new UnsupportedError({ where, what, ...(got !== undefined && { got }) })
}

function weightAt({ node, form }: Linear): Place {
  return { node, input: form.isLookup ? 0 : 1 }
}

function layerAt(
  { graph, use }: PlacedModel,
  at: Omit<LayerPlacement, 'kind' | 'node' | 'input'>,
  { name, hasBias = false }: { readonly name: string; readonly hasBias?: boolean },
): LayerPlacement {
  const { linear } = at
  const placement = { kind: 'layer', ...weightAt(linear), ...at } as const
  // Branches beside quantized weights also add the bias.
  if (use !== 'merge' || linear.form.isQuantized) return placement
  requireMergeable(linear)
  return hasBias ? { ...placement, bias: biasOf(graph, linear) ?? noBias(name) } : placement
}

function noBias(where: string): never {
  const what = 'the adapter has a bias of B (lora_bias), but the graph has no bias here to add it to'
  throw new MismatchError({ where, what })
}

function requireMergeable({ node }: Linear): void {
  const alpha = node.opType === 'Gemm' ? floatAttribute(node, 'alpha', 1) : 1
  if (alpha === 1) return
  throw new UnsupportedError({
    where: `node ${node.name}`,
    what: 'a Gemm whose alpha is not 1 cannot be merged into',
    got: `alpha ${alpha}`,
    hint: 'Use the adapter at run time',
  })
}

function placeEmbedding(model: PlacedModel, part: PartOf<'embedding'>): Placement[] {
  const { name, d, k, hasMagnitude } = part
  if (hasMagnitude && model.use === 'training') throw doraOfEmbedding(name)
  return embeddingsOf(model, name, [k, d]).map((linear) =>
    layerAt(model, { part: name, linear, name, start: 0, d }, part),
  )
}

export function doraOfEmbedding(where: string): UnsupportedError {
  return new UnsupportedError({
    where,
    what: 'DoRA of an embedding cannot be trained here',
    expected: 'DoRA of linear layers, or LoRA of the embedding',
    hint: 'Leave the embedding out of `targetModules`, or `useDora`',
  })
}

/** Finds embeddings by name. An undefined size matches any. Throws UnsupportedError if the graph has none. */
function embeddingsOf(
  { graph, embeddings }: PlacedModel,
  module: string,
  [vocabulary, features]: readonly [number | undefined, number | undefined],
): Linear[] {
  const found = ofModule(embeddings, module)
  if (found.length === 0) {
    const ops = graph.nodes.filter((node) => nodeScope(node) === module).map(({ opType }) => opType)
    throw new UnsupportedError({
      where: module,
      what: 'the graph has no embedding of this name, or not in a form that lowrank reads',
      ...(ops.length > 0 && { got: ops.join(', ') }),
      hint: didYouMean(module, new Set(embeddings.map(({ name }) => name)), 3),
    })
  }
  for (const { k, d } of found) {
    const wanted = [vocabulary ?? k, features ?? d]
    if (wanted[0] !== k || wanted[1] !== d) throw shapeError(module, [k, d], wanted)
  }
  return found
}

/** Merges change kernels of any size. Other uses take those of size 1, which are linear layers over channels. */
function placeConvolution(model: PlacedModel, part: PartOf<'convolution'>): Placement[] {
  const { graph, use } = model
  const { name, shape, groups, hasBias } = part
  const [d, channels, ...kernel] = shape
  const found = ofModule(findConvolutions(graph), name)
  const none = 'the graph has no convolution of this name'
  if (use === 'merge') {
    if (groups > 1) refuse(name, groupsRefusal(groups))
    if (found.length === 0) refuse(name, none)
    return found.map(({ node, input, bias, ...place }) => {
      if (place.groups !== 1 || place.shape.join() !== shape.join()) throw shapeError(name, place.shape, shape)
      // PEFT applies A without the base's dilation, which no change of the weight can express.
      if (place.dilations.some((dilation) => dilation !== 1)) refuse(name, 'a dilated convolution cannot be merged')
      const ofBias = bias === undefined ? undefined : { node, input: bias, start: 0, width: d }
      return { kind: 'kernel', part: name, node, input, bias: hasBias ? (ofBias ?? noBias(name)) : undefined }
    })
  }
  const isPointwise = groups === 1 && kernel.every((size) => size === 1)
  const linears = isPointwise ? ofModule(findPointwise(graph), name) : []
  if (linears.length === 0) {
    throw new UnsupportedError({
      where: name,
      what: found.length === 0 ? none : 'a session cannot adapt this convolution',
      expected: 'a convolution of kernel 1 and stride 1, in one group, without padding',
      ...(found.length > 0 && {
        got: `kernel ${kernel.join(' x ')}, ${groups} groups`,
        hint: 'Merge the adapter',
      }),
    })
  }
  return linears.map((linear) => {
    if (linear.d !== d || linear.k !== channels) throw shapeError(name, [linear.d, linear.k], [d, channels])
    return layerAt(model, { part: name, linear, name, start: 0, d }, part)
  })
}

function placeParameter(model: PlacedModel, part: PartOf<'parameter'>): Placement[] {
  const { graph, linears, config } = model
  const { name } = part
  const { layers, stack, order } = placeExperts(graph, linears, part, config)
  const ofLayers = layers.map(({ linear, expert, start }) =>
    layerAt(model, { part: name, linear, name: linear.name, start, d: linear.d, expert, order }, part),
  )
  if (stack === undefined) return ofLayers
  const { node, input } = stack
  return [{ kind: 'stack', part: name, node, input, stack, order }, ...ofLayers]
}

function placeTensor(
  model: PlacedModel,
  part: PartOf<'replacement'>,
  adapter: PlacedAdapter,
  { tied, copies }: Facts,
): Placement[] {
  const { graph, linears, embeddings, config, use } = model
  const { name, module, isTrained, shape } = part
  const isWhole = use === 'training' && isTrained && !isOfIntegers(model, part)
  const member = name.slice(module.length + 1)
  if (!isWeightDtype(part.dtype)) refuse(name, 'values of this type cannot take a place in the graph', part.dtype)
  const own = ofModule(linears, module)
  const isWeight = member === 'weight'
  const ofEmbedding = isWeight && own.length === 0 ? ofModule(embeddings, module) : []
  const vector = (at: Omit<VectorPlacement, 'kind' | 'part'>): VectorPlacement => {
    const what = 'a vector that is saved with an adapter, but not trained, has no place in training'
    return use === 'training' && !isWhole ? refuse(name, what) : { kind: 'vector', part: name, ...at }
  }
  if (member === 'bias' && own.length > 0) {
    return own.map((linear) => {
      const bias = certainBias(graph, linear)
      if (bias === undefined)
        refuse(name, 'the linear layer has no bias that is certain to be this one', linear.node.name)
      if (shape.length !== 1 || shape[0] !== linear.d) throw shapeError(name, [linear.d], shape)
      const { node, input, start, width } = bias
      return vector({ node, input, linear, start: width === linear.d ? undefined : start, offset: 0 })
    })
  }
  if (!isWeight || (own.length === 0 && ofEmbedding.length === 0)) {
    const places = isWhole && shape.length > 1 ? [] : placesOf(graph, name, shape)
    if (places.length === 0) {
      const ops = graph.nodes.filter((node) => nodeScope(node) === module).map(({ opType }) => opType)
      refuse(name, 'the graph has no tensor that is certain to be this one', ops.join(', ') || 'no node')
    }
    const { model_type: type = 'no model_type in config.json' } = config
    const offset = normOffset(graph, config, name)
    if (offset === undefined && isWhole) throw untrainable(name, UNKNOWN_OFFSET, places[0].node)
    if (offset === undefined) refuse(name, UNKNOWN_OFFSET, String(type))
    if (use === 'session') for (const at of places) checkVector(name, at)
    return places.map((at) => vector({ ...at, linear: undefined, start: undefined, offset }))
  }
  const isFree = ({ name: tiedTo }: Linear) => !adapter.has(`${tiedTo}.weight`)
  const tiedTo = (table: Linear, heads: readonly Linear[]) =>
    heads.filter((head) => head.isHead && tied.get(table.name)?.includes(head.name))
  const wanted = use === 'merge' ? shapeBefore(model, part) : shape
  if (isWhole) {
    for (const linear of [...own, ...ofEmbedding]) requireTrainable(linear, name)
    if (adapter.has(module)) refuse(name, 'a weight that is replaced and adapted at once cannot be trained')
  }
  // In PEFT a trained copy replaces only its own module. A copy that was merely saved is for all uses of the base's
  // tensor.
  const found =
    own.length > 0
      ? [
          ...own.map((linear) => ({ linear, isInputMajor: isInputMajor(linear, name, wanted, adapter.isConv1d) })),
          ...(isTrained ? [] : embeddings)
            .filter((table) => tiedTo(table, own).length > 0 && isFree(table))
            .map((linear) => ({ linear, isInputMajor: true })),
        ]
      : embeddingsOf(model, module, [wanted[0], wanted[1]]).flatMap((table) => [
          { linear: table, isInputMajor: true },
          ...(isTrained ? [] : tiedTo(table, linears))
            .filter(isFree)
            .map((linear) => ({ linear, isInputMajor: false })),
        ])
  return found.flatMap(({ linear, isInputMajor }): WeightPlacement[] => {
    if (!isTrained && copies.has(copyAt(name, linear))) return []
    const isHeld = use === 'training' && isTrained && !linear.form.isQuantized
    if (isHeld && isInputMajor && !linear.form.isLookup) throw shapeError(name, [linear.d, linear.k], shape)
    if (isHeld && !isWhole) return []
    return [valuesAt(model, { part: name, linear, isInputMajor, tokens: undefined }, isHeld)]
  })
}

function valuesAt(
  { use }: PlacedModel,
  at: Pick<WeightPlacement, 'part' | 'linear' | 'isInputMajor' | 'tokens'>,
  isHeld = false,
): WeightPlacement {
  const { linear, tokens } = at
  const { name, dataType, form } = linear
  const inFloats = use === 'merge' ? form.isQuantized : use === 'training' && tokens === undefined && !isHeld
  if (inFloats && FLOAT_DTYPES[dataType] === undefined)
    refuse(name, 'its type of floats cannot be written', dataTypeName(dataType))
  if (use === 'merge') requireMergeable(linear)
  return { kind: 'weight', ...weightAt(linear), ...at, inFloats }
}

/** Returns the shape of a replaced tensor, with as many rows as the base has if its vocabulary has grown. */
function shapeBefore({ embeddings, linears }: PlacedModel, { name, module, shape }: PartOf<'replacement'>) {
  if (shape.length !== 2 || !name.endsWith('.weight') || !isVocabularyModule(module)) return shape
  const [embedding] = ofModule(embeddings, module)
  const [head] = ofModule(linears, module)
  const rows = head?.isHead && head.k === shape[1] ? head.d : shape[0]
  return embedding?.d === shape[1] ? [embedding.k, shape[1]] : [rows, shape[1]]
}

function isInputMajor(linear: Linear, name: string, shape: readonly number[], isConv1d: boolean): boolean {
  const { d, k, fused } = linear
  if (fused !== undefined) refuse(name, 'the linear layer computes several layers', linear.node.name)
  const [rows, columns] = shape
  const isOutputMajor = shape.length === 2 && rows === d && columns === k
  const isTurned = shape.length === 2 && rows === k && columns === d
  if (!isOutputMajor && !isTurned) throw shapeError(name, [d, k], shape)
  if (isOutputMajor && isTurned && isConv1d) {
    refuse(name, 'a square weight of a model with Conv1D layers could be stored either way', formatShape(shape))
  }
  return !isOutputMajor
}

/** Finds the embedding or the head that has these rows, or both if they are tied. */
function placeRows(
  model: PlacedModel,
  part: PartOf<'token-rows'>,
  adapter: PlacedAdapter,
  { tied }: Facts,
): Placement[] {
  const { name, module, indices: tokens, shape } = part
  if (!isWeightDtype(part.dtype)) refuse(module, 'rows of this type cannot take a place in the graph', part.dtype)
  const inRange = (vocabulary: number) => {
    const outside = tokens.find((token) => token >= vocabulary)
    if (outside === undefined) return
    throw new MismatchError({ where: module, what: `no row ${outside} to replace`, expected: `below ${vocabulary}` })
  }
  const rowsAt = (linear: Linear) => {
    inRange(linear.form.isLookup ? linear.k : linear.d)
    return valuesAt(model, { part: name, linear, isInputMajor: linear.form.isLookup === true, tokens })
  }
  const ofHead = (linear: Linear) => {
    if (linear.k !== shape[1]) throw shapeError(module, [tokens.length, linear.k], shape)
    return rowsAt(linear)
  }
  const heads = ofModule(model.linears, module)
  if (heads.length > 0) return heads.map(ofHead)
  return embeddingsOf(model, module, [undefined, shape[1]]).flatMap((table) => {
    const own = rowsAt(table)
    const others = model.linears.filter(
      (head) => head.isHead && tied.get(table.name)?.includes(head.name) && !adapter.has(rowsName(head.name)),
    )
    return [own, ...others.map(ofHead)]
  })
}

function isOfIntegers({ linears, embeddings }: PlacedModel, { shape, module }: PartOf<'replacement'>): boolean {
  const integers = [...linears, ...embeddings].filter(({ form }) => form.isQuantized)
  return shape.length === 2 && integers.some((integer) => endAlike(integer.name, module))
}
