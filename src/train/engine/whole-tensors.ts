// Tensors of the base that a run trains whole, as PEFT's bias and modules_to_save say.

import { encodeFloats } from '../../core/base/dtype.js'
import { didYouMean, MismatchError, UnsupportedError } from '../../core/base/errors.js'
import { transpose } from '../../core/base/tensor.js'
import type { LoraAdapter } from '../../lora/adapter.js'
import type { LoraConfig } from '../../lora/config.js'
import { moduleOf } from '../../lora/part.js'
import { isInsideModule } from '../../lora/patterns/patterns.js'
import { toFloats } from '../../model/inject/to-floats.js'
import { FLOAT_DTYPES } from '../../model/match/forms/float-product.js'
import { readBaseTensor } from '../../model/match/read-base-tensor.js'
import type { Model } from '../../model/model-folder.js'
import { linesOf, readFacts } from '../../model/place/facts.js'
import { place, placedModel, placedOrThrow, placeWhole } from '../../model/place/place.js'
import { type PlacedModel, placedAdapter } from '../../model/place/placement.js'
import { type BaseTensor, baseTensors, requireTrainable } from '../../model/place/tensors.js'
import { OnnxModel } from '../../onnx/format/model.js'
import { Graph, readGraph } from '../../onnx/view/graph.js'
import { type BaseOpener, baseOpener, type WholeTensor } from '../graph/open-base.js'
import { type Context, trainedRows } from '../rows/token-rows.js'

function headNames({ open }: Pick<Context, 'open'>): ReadonlySet<string> {
  return new Set(open.head?.tensors.map(({ name }) => name))
}

function modelOf({ model, modules }: Context, graph = readGraph(model.onnx)): PlacedModel {
  return placedModel(graph, 'training', model.config, modules)
}

/** The base's tensors, as the PyTorch model names them, without those of a head that the task trains. */
function tensorsOf(context: Context): BaseTensor[] {
  const { head } = context.open
  const ofHead = headNames(context)
  return baseTensors(modelOf(context))
    .map(({ name, module, shape }) => {
      const inPyTorch = head?.moduleName(module) ?? module
      return { name: inPyTorch + name.slice(module.length), module: inPyTorch, shape }
    })
    .filter(({ name }) => !ofHead.has(name))
}

/** Finds the place of a tensor that an adapter begins to train. */
function placeNew(model: PlacedModel, tensor: BaseTensor) {
  const at = placeWhole(model, tensor)
  if (at.kind === 'weight') requireTrainable(at.linear, tensor.name)
  return at
}

export function savedTensors(context: Context, config: LoraConfig): readonly BaseTensor[] {
  const { modulesToSave, ensureWeightTying } = config
  if (modulesToSave.length === 0) return []
  const all = tensorsOf(context)
  const ofHead = headNames(context)
  for (const entry of modulesToSave) {
    if ([...all.map(({ module }) => module), ...[...ofHead].map(moduleOf)].some((name) => isInsideModule(name, entry)))
      continue
    const modules = all.flatMap(({ module }) => [module, module.replace(/^.*\./, '')])
    throw new MismatchError({
      where: 'modulesToSave',
      what: `no module of the model that can be told from its graph is ${JSON.stringify(entry)}`,
      hint: didYouMean(entry, modules, 3),
    })
  }
  const found = all.filter(({ module }) => modulesToSave.some((entry) => isInsideModule(module, entry)))
  const model = modelOf(context)
  for (const tensor of found) {
    const at = placeNew(model, tensor)
    if (!ensureWeightTying || at.kind !== 'weight' || !(at.linear.isHead || at.linear.form.isLookup)) continue
    throw new UnsupportedError({
      where: tensor.name,
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
): readonly BaseTensor[] {
  if (config.bias === 'none') return []
  const isMeant = ({ name, module }: BaseTensor) =>
    name.endsWith('.bias') && (config.bias === 'all' || isAdapted(module))
  return tensorsOf(context).filter(isMeant)
}

/** Adds tensors to an adapter, with the base's values. PEFT calls that of an adapted layer by the layer inside. */
export async function addWhole(adapter: LoraAdapter, context: Context, tensors: readonly BaseTensor[]): Promise<void> {
  const model = modelOf(context)
  for (const tensor of tensors) {
    const { name, module, shape } = tensor
    if (adapter.has(name)) continue
    const at = placeNew(model, tensor)
    const { offset = 0 } = at.kind === 'vector' ? at : {}
    const stored = await readBaseTensor(context.model.onnx, model.graph, at, shape[0])
    const data = offset === 0 ? stored : stored.map((value) => value - offset)
    const key = adapter.has(module) ? `${module}.base_layer${name.slice(module.length)}` : name
    adapter.addReplacement(name, { data, shape }, { key })
  }
}

/** Places what an adapter replaces. Throws if it cannot be trained. */
export async function placeInBase(adapter: LoraAdapter, context: Context, graph?: Graph) {
  const model = modelOf(context, graph)
  const ofHead = headNames(context)
  const parts = placedAdapter(
    adapter,
    adapter.parts('replacement', 'token-rows').filter(({ name }) => !ofHead.has(name)),
  )
  const facts = await readFacts(context.model.onnx, model, parts, linesOf(adapter))
  return placedOrThrow(place(model, parts, facts))
}

/**
 * Opens the base for training. The model is the base with the tensors that PEFT saved along with an adapter of an
 * embedding or an output layer, where they are others than the base's own: nothing trains them. Weights that are
 * trained whole get floats in the place of integers.
 */
export async function openBase(
  adapter: LoraAdapter,
  context: Context,
): Promise<{ readonly model: Model; readonly base: BaseOpener | undefined }> {
  const { model } = context
  if (adapter.parts('replacement', 'token-rows').length === 0) return { model, base: undefined }
  const { proto, name, fileName, files } = model.onnx
  const graph = new Graph(proto)
  const placements = await placeInBase(adapter, context, graph)
  const base = baseOpener(wholeTensors(adapter, context), trainedRows(adapter, context, placements), model.config)
  const changes = placements.flatMap((at) => (at.kind === 'weight' && at.inFloats ? at : []))
  if (changes.length === 0) return { model, base }
  for (const { part, linear, isInputMajor } of changes) {
    const { weight, shape } = adapter.get(part, 'replacement')!
    const isTurned = isInputMajor === linear.transposed
    const { data } = isTurned ? transpose({ data: weight.data, shape: [shape[0], shape[1]] }) : weight
    toFloats(graph, linear, encodeFloats(Float32Array.from(data), FLOAT_DTYPES[linear.dataType]!))
  }
  return { model: { ...model, onnx: new OnnxModel(name, fileName, graph.toModel(), files) }, base }
}

function wholeTensors(adapter: LoraAdapter, context: Context): WholeTensor[] {
  const { modulesToSave } = adapter.config
  const ofHead = headNames(context)
  const trained = adapter.parts('replacement').filter(({ name, isTrained }) => isTrained && !ofHead.has(name))
  return trained.map(({ name, module, shape }) => {
    return { name, shape, isOptional: !modulesToSave.some((entry) => isInsideModule(module, entry)) }
  })
}
