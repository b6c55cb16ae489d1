// Tensors of the base that a run trains whole, as PEFT's bias and modules_to_save say.

import { encodeFloats } from '../../core/base/dtype.js'
import { didYouMean, MismatchError, UnsupportedError } from '../../core/base/errors.js'
import { transpose } from '../../core/base/tensor.js'
import type { LoraAdapter } from '../../lora/adapter.js'
import type { LoraConfig } from '../../lora/config.js'
import type { Replacement } from '../../lora/kinds/stored.js'
import { moduleOf } from '../../lora/part.js'
import { isInsideModule } from '../../lora/patterns/patterns.js'
import { toFloats } from '../../model/inject/to-floats.js'
import { isBaseCopy } from '../../model/match/base-copies.js'
import { type BaseTensor, baseTensors, trainableTensor } from '../../model/match/base-tensors.js'
import { FLOAT_DTYPES } from '../../model/match/forms/float-product.js'
import { findEmbeddings } from '../../model/match/forms/lookup.js'
import { findLinears, type Linear, type ModuleMap } from '../../model/match/linears.js'
import { endAlike } from '../../model/match/module-names.js'
import { readBaseTensor } from '../../model/match/read-base-tensor.js'
import { normOffset, placeReplacement, UNKNOWN_OFFSET } from '../../model/match/stored-places.js'
import type { Model } from '../../model/model-folder.js'
import { OnnxModel } from '../../onnx/format/model.js'
import { Graph, readGraph } from '../../onnx/view/graph.js'
import { type BaseOpener, baseOpener, type WholeTensor } from '../graph/open-base.js'
import { type Context, trainedRows } from '../rows/token-rows.js'

interface Named {
  readonly name: string
  readonly base: BaseTensor
  /** See {@link normOffset}. */
  readonly offset: number
}

function headNames({ open }: Pick<Context, 'open'>): ReadonlySet<string> {
  return new Set(open.head?.tensors.map(({ name }) => name))
}

function tensorsOf({ model, open, modules }: Context): Named[] {
  const graph = readGraph(model.onnx)
  const ofHead = headNames({ open })
  return baseTensors(graph, findLinears(graph, modules))
    .map((base) => {
      const { name, module, places } = base
      const isOther = places.some((place) => place.kind === 'vector' && place.linear === undefined)
      const offset = isOther ? normOffset(graph, model.config, name) : 0
      const tensor = offset === undefined ? { ...base, problem: UNKNOWN_OFFSET } : base
      const named = (open.head?.moduleName(module) ?? module) + name.slice(module.length)
      return { name: named, base: tensor, offset: offset ?? 0 }
    })
    .filter(({ name }) => !ofHead.has(name))
}

export function savedTensors(context: Context, config: LoraConfig): readonly Named[] {
  const { modulesToSave, ensureWeightTying } = config
  if (modulesToSave.length === 0) return []
  const all = tensorsOf(context)
  const ofHead = headNames(context)
  for (const entry of modulesToSave) {
    if ([...all.map(({ name }) => name), ...ofHead].some((name) => isInsideModule(moduleOf(name), entry))) continue
    const modules = all.flatMap(({ name }) => [moduleOf(name), moduleOf(name).replace(/^.*\./, '')])
    throw new MismatchError({
      where: 'modulesToSave',
      what: `no module of the model that can be told from its graph is ${JSON.stringify(entry)}`,
      hint: didYouMean(entry, modules, 3),
    })
  }
  const found = all.filter(({ name }) => modulesToSave.some((entry) => isInsideModule(moduleOf(name), entry)))
  for (const { name, base } of found) {
    trainableTensor([{ ...base, name }], name)
    const isEmbedding = base.places.some(
      (place) => place.kind === 'weight' && (place.linear.isHead || place.linear.form.isLookup),
    )
    if (!ensureWeightTying || !isEmbedding) continue
    throw new UnsupportedError({
      where: name,
      what: 'an embedding cannot be trained whole and stay tied (ensureWeightTying)',
      hint: 'Train it without ensureWeightTying, or adapt it by LoRA',
    })
  }
  return found
}

export function trainedBiases(
  context: Context,
  config: LoraConfig,
  isAdapted: (module: string) => boolean,
): readonly Named[] {
  if (config.bias === 'none') return []
  const isMeant = ({ name }: Named) => name.endsWith('.bias') && (config.bias === 'all' || isAdapted(moduleOf(name)))
  const found = tensorsOf(context).filter(isMeant)
  for (const { name, base } of found) trainableTensor([{ ...base, name }], name)
  return found
}

/** Adds tensors to an adapter, with the base's values. PEFT calls that of an adapted layer by the layer inside. */
export async function addWhole(adapter: LoraAdapter, { model }: Context, tensors: readonly Named[]): Promise<void> {
  const graph = readGraph(model.onnx)
  for (const { name, base, offset } of tensors) {
    if (adapter.has(name)) continue
    const { shape } = base
    const stored = await readBaseTensor(model.onnx, graph, base)
    const data = offset === 0 ? stored : stored.map((value) => value - offset)
    const module = moduleOf(name)
    const key = adapter.has(module) ? `${module}.base_layer${name.slice(module.length)}` : name
    adapter.addReplacement(name, { data, shape }, { key })
  }
}

export function wholeTensors(adapter: LoraAdapter, context: Context): WholeTensor[] {
  const { config } = adapter
  const ofHead = headNames(context)
  const replaced = adapter.parts('replacement').filter(({ name, isTrained }) => isTrained && !ofHead.has(name))
  if (replaced.length === 0) return []
  const all = tensorsOf(context).map(({ name, base, offset }) => ({ ...base, name, offset }))
  return replaced.map(({ name, module, shape }) => {
    const { offset } = trainableTensor(all, name, shape)
    if (adapter.get(module, 'linear') !== undefined && name === `${module}.weight`) {
      throw new UnsupportedError({
        where: name,
        what: 'a weight that is replaced and adapted at once cannot be trained',
      })
    }
    const isOptional = !config.modulesToSave.some((entry) => isInsideModule(module, entry))
    return { name, shape, isOptional, offset }
  })
}

/**
 * The model with the tensors that PEFT saved along with an adapter of an embedding or an output layer, where they are
 * others than the base's own. Nothing trains them. Weights that are trained whole get floats in the place of integers.
 */
export async function withSavedTensors(model: Model, adapter: LoraAdapter, modules?: ModuleMap): Promise<Model> {
  const { onnx, config } = model
  const graph = new Graph(onnx.proto)
  const places = { model: onnx, graph, linears: findLinears(graph, modules), embeddings: findEmbeddings(graph), config }
  const integers = [...places.linears, ...places.embeddings].filter(({ form }) => form.isQuantized)
  const changes: { readonly linear: Linear; readonly isTurned: boolean; readonly tensor: Replacement }[] = []
  for (const tensor of adapter.parts('replacement')) {
    const { name, weight, isTrained, module } = tensor
    if (isTrained && (weight.shape.length !== 2 || !integers.some((integer) => endAlike(integer.name, module))))
      continue
    const { data, shape } = weight
    const isReplaced = (tensor: string) => adapter.has(tensor)
    for (const place of await placeReplacement(places, tensor, adapter.config.fanInFanOut, isReplaced)) {
      if (place.kind !== 'weight') {
        const what = 'a vector that is saved with an adapter, but not trained, has no place in training'
        throw new UnsupportedError({ where: name, what })
      }
      const { linear, isInputMajor } = place
      const read = (first: number, count: number) => data.subarray(first * shape[1], (first + count) * shape[1])
      if (isTrained ? !linear.form.isQuantized : await isBaseCopy(places, place, read)) continue
      changes.push({ linear, isTurned: isInputMajor === linear.transposed, tensor })
    }
  }
  if (changes.length === 0) return model
  for (const { linear, isTurned, tensor } of changes) {
    const [rows, columns] = tensor.shape
    const { data } = isTurned ? transpose({ data: tensor.weight.data, shape: [rows, columns] }) : tensor.weight
    toFloats(graph, linear, encodeFloats(Float32Array.from(data), FLOAT_DTYPES[linear.dataType]!))
  }
  return { ...model, onnx: new OnnxModel(onnx.name, onnx.fileName, graph.toModel(), onnx.files) }
}

/** `saved` is the model {@link withSavedTensors}; which embeddings are tied, the base itself says. */
export async function baseOf(adapter: LoraAdapter, context: Context, saved: Model): Promise<BaseOpener> {
  return baseOpener(wholeTensors(adapter, { ...context, model: saved }), await trainedRows(adapter, context))
}
