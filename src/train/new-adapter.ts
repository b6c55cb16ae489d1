// The adapter that a training starts from: which modules it adapts, which tensors it trains, and their first values.

import { ConfigError, listed, MismatchError, UnsupportedError } from '../core/base/errors.js'
import { Random } from '../core/base/random.js'
import { zeros } from '../core/base/tensor.js'
import { LoraAdapter } from '../lora/adapter.js'
import { configForLayer, type LoraConfig, resolveConfig } from '../lora/config.js'
import { newExpertFactors } from '../lora/kinds/experts.js'
import { LoraLayer } from '../lora/layer.js'
import { isAllLinear, layerIndex, matchTimeOf, targetMatcher } from '../lora/patterns/patterns.js'
import { modelType } from '../model/families/families.js'
import { dropTextModules } from '../model/heads/head-rows.js'
import { findEmbeddings } from '../model/match/forms/lookup.js'
import { otherPointwise } from '../model/match/forms/pointwise.js'
import { findLinears, type Linear, type NamedLayer } from '../model/match/linears.js'
import { matchTargets } from '../model/match/match.js'
import { hasEnd } from '../model/match/module-names.js'
import { modulesInPyTorch } from '../model/match/packed.js'
import type { Model } from '../model/model-folder.js'
import { findParameters, type Parameter } from '../model/place/experts.js'
import { doraOfEmbedding } from '../model/place/place.js'
import { type Graph, readGraph } from '../onnx/view/graph.js'
import { squaresOfRows } from './engine/dora.js'
import { addWhole, savedTensors, trainedBiases } from './engine/whole-tensors.js'
import type { TrainInput } from './options.js'
import type { TrainEvents } from './report.js'
import { addTokenRows, withTokens } from './rows/token-rows.js'
import type { OpenTask, Task } from './tasks/task.js'

/** The linear layers of a model, and those that a config means. */
export interface Targets {
  readonly config: LoraConfig
  readonly linears: readonly Linear[]
  readonly targets: readonly Linear[]
  readonly embeddings: readonly Linear[]
  readonly parameters: readonly Parameter[]
  readonly isOfPictures: boolean
}

/**
 * @throws ConfigError and MismatchError when the config means no layer; UnsupportedError for embeddings with DoRA, and
 *   for layers of the vision encoder alone
 */
export async function findTargets(
  model: Model,
  given: LoraConfig,
  { modules, on, numLayers }: Pick<TrainInput, 'modules' | 'on' | 'numLayers'>,
): Promise<Targets> {
  const graph = readGraph(model.onnx)
  dropTextModules(graph)
  const linears = modulesInPyTorch(modelType(model.config.model_type), findLinears(graph, modules))
  const config = numLayers === undefined ? given : inLastLayers(given, linears, numLayers)
  const pointwise = otherPointwise(graph, linears)
  const isAll = isAllLinear(config.targetModules)
  const embeddings = isAll ? [] : targetEmbeddings(model, graph, config)
  const isOfPictures = model.graphs.vision_encoder !== undefined
  if (isOfPictures) await leaveVision(model, linears, config, on)
  const parameters = targetParameters(graph, linears, config, model)
  const candidates = isAll ? linears : [...linears, ...pointwise, ...embeddings]
  const isOfParameters = parameters.length > 0 && config.targetModules.length === 0
  const found = isOfParameters ? [] : matchTargets(candidates, config)
  const targets = found.filter(({ form }) => !form.isLookup)
  tellOfPointwise(pointwise, isAll ? undefined : new Set(targets), on)
  return { config, linears, targets, embeddings, parameters, isOfPictures }
}

function targetParameters(graph: Graph, linears: readonly Linear[], config: LoraConfig, model: Model): Parameter[] {
  const entries = config.targetParameters
  const all = entries.length === 0 ? [] : findParameters(graph, linears, model.config)
  const means = (entry: string) => (parameter: Parameter) => hasEnd(parameter.name, entry)
  const unknown = entries.find((entry) => !all.some(means(entry)))
  if (unknown !== undefined) {
    throw new MismatchError({
      where: 'targetParameters',
      what: `no parameter of the model's experts has the name ${JSON.stringify(unknown)}`,
      expected: listed([...new Set(all.map(({ name }) => name))], 'parameters') || 'a model of experts',
    })
  }
  return all.filter((parameter) => entries.some((entry) => means(entry)(parameter)))
}

/** The config with the last layers alone. PEFT takes names of modules beside layers_to_transform, not `all-linear`. */
function inLastLayers(config: LoraConfig, linears: readonly Linear[], numLayers: number): LoraConfig {
  const { targetModules } = config
  const isAll = isAllLinear(targetModules)
  if (typeof targetModules === 'string' && !isAll) {
    throw new ConfigError({
      where: 'numLayers',
      what: 'works with all-linear or names in `targetModules`, not with an expression',
      got: targetModules,
    })
  }
  const indexOf = layerIndex(config, matchTimeOf(config))
  const inLayers = linears.flatMap(({ name }) => {
    const index = indexOf(name)
    return index === undefined ? [] : [{ index, end: name.slice(name.lastIndexOf(`.${index}.`) + `.${index}.`.length) }]
  })
  const indices = [...new Set(inLayers.map(({ index }) => index))].sort((a, b) => a - b)
  if (numLayers > indices.length) {
    throw new ConfigError({
      where: 'numLayers',
      what: 'more layers than the model has',
      expected: `at most ${indices.length}`,
      got: String(numLayers),
    })
  }
  const ends = [...new Set(inLayers.map(({ end }) => end))]
  return resolveConfig({
    ...config,
    targetModules: isAll ? ends : targetModules,
    layersToTransform: indices.slice(-numLayers),
  })
}

export async function newAdapter(
  model: Model,
  { config: plain, linears, targets, embeddings, parameters, isOfPictures }: Targets,
  options: Pick<TrainInput, 'modules' | 'trainedTokens'> & { readonly task: Task; readonly open: OpenTask },
): Promise<LoraAdapter> {
  const { task, open, modules, trainedTokens } = options
  const { head } = open
  const context = { model, open, modules }
  const config = withTokens(plain, model, trainedTokens)
  const saved = savedTensors(context, config)
  const whole = new Set([...saved, ...(head?.tensors ?? [])].map(({ name }) => name))
  const layers = new Map<string, NamedLayer>()
  const skipped = new Set<string>()
  const type = modelType(model.config.model_type)
  for (const { name: graphName, d, k } of targets) {
    const name = head?.moduleName(graphName) ?? graphName
    if (!whole.has(`${name}.weight`)) layers.set(name, layers.get(name) ?? { name, d, k })
    else if (!head?.tensors.some((tensor) => tensor.name === `${name}.weight`)) skipped.add(name)
  }
  const taskType = config.taskType ?? (open.plainUse === undefined ? task.peftType : undefined)
  const hasPooler = linears.some(({ name }) => name.endsWith('pooler.dense'))
  const isVectors = taskType === task.peftType && task.use.autoClass === 'AutoModel' && type.hasPooler
  if (isVectors && !hasPooler && [...layers.keys()].some((name) => name.endsWith('.dense'))) skipped.add('pooler.dense')
  const modulesToSave = [...new Set([...config.modulesToSave, ...(head?.modulesToSave ?? [])])]
  // PEFT would find layers of these names in the vision encoder too.
  const targetModules = isOfPictures ? [...layers.keys()] : config.targetModules
  const adapter = new LoraAdapter({ ...config, targetModules, ...without(config, skipped), taskType, modulesToSave })
  const squares = await squaresOfRows(model, config.useDora ? [...layers.values()] : [], modules)
  for (const { name, d, k } of layers.values()) {
    const sums = squares.get(name)
    if (sums === undefined) adapter.addLayerOfShape(name, [d, k])
    else {
      const { weightA, weightB } = LoraLayer.ofShape([d, k], { ...adapter.config, useDora: false }, name)
      adapter.addFactors(name, weightA, weightB, { magnitude: Float32Array.from(sums, Math.sqrt) })
    }
  }
  for (const { name, ...shape } of parameters) {
    const { weightA, weightB } = newExpertFactors(shape, adapter.config, name)
    adapter.addExperts(name, weightA, weightB)
  }
  for (const { name: graphName, d, k } of new Map(embeddings.map((table) => [table.name, table])).values()) {
    const name = head?.moduleName(graphName) ?? graphName
    if (whole.has(`${name}.weight`)) continue
    const { rank, init } = configForLayer(adapter.config, name)
    const random = new Random(config.seed, `init/${name}`)
    const normals = (rows: number, columns: number) => {
      return {
        data: Float32Array.from({ length: rows * columns }, () => random.normal()),
        shape: [rows, columns] as const,
      }
    }
    // As in PEFT, where B is the random factor.
    const weightA = init === 'random' ? normals(rank, k) : zeros(rank, k, new Float32Array())
    adapter.addEmbedding(name, weightA, normals(d, rank))
  }
  for (const { name, shape, start } of head?.tensors ?? []) {
    adapter.addReplacement(name, { data: await start(new Random(config.seed, name)), shape })
  }
  const biases = trainedBiases(context, config, (module) => layers.has(module))
  await addWhole(adapter, context, [...saved, ...biases])
  await addTokenRows(adapter, context)
  return adapter
}

const AROUND_VISION = ['', 'vision_tower.', 'vision_model.', 'visual.']

/** Refuses targets that only the vision encoder has, and tells of those that it has too: it is not trained. */
async function leaveVision(model: Model, linears: readonly Linear[], config: LoraConfig, on?: TrainEvents) {
  const frozen = findLinears(readGraph(await model.openGraph('vision_encoder')))
  const { targetModules } = config
  // A text is one expression; in a list, each entry names modules of its own.
  for (const target of typeof targetModules === 'string' ? [targetModules] : targetModules.map((name) => [name])) {
    const isMeant = isAllLinear(target) ? () => true : targetMatcher({ ...config, targetModules: target })
    // Names in an exported graph lack the modules that enclose the encoder, such as vision_tower. Try each of them.
    const left = frozen.filter(({ name }) => AROUND_VISION.some((module) => isMeant(`model.${module}${name}`)))
    if (left.length === 0) continue
    const [what, { name }] = [[target].flat()[0], left[0]]
    if (linears.some((linear) => isMeant(linear.name))) {
      on?.note?.(
        `${what}: trained in the language model alone. ${left.length} layers of the vision encoder stay as they are`,
      )
    } else {
      throw new UnsupportedError({
        where: 'targetModules',
        what: `${what} is in the vision encoder (${name}), which is not trained here`,
        expected: 'linear layers of the language model',
      })
    }
  }
}

function targetEmbeddings(model: Model, graph: Graph, config: LoraConfig): Linear[] {
  const isTarget = targetMatcher(config)
  const meant = findEmbeddings(graph).filter(({ name }) => isTarget(name))
  if (meant.length === 0) return []
  const [{ name }] = meant
  if (config.useDora) throw doraOfEmbedding(name)
  if (model.graphs.encoder === undefined) return meant
  const exclude = JSON.stringify(meant.map((embedding) => embedding.name))
  throw new UnsupportedError({
    where: 'targetModules',
    what: `${name} is an embedding, and PEFT's one shared embedding is several in graphs of an encoder and a decoder`,
    expected: 'linear layers',
    hint: `Leave it out with \`excludeModules: ${exclude}\``,
  })
}

function tellOfPointwise(
  pointwise: readonly Linear[],
  targets: ReadonlySet<Linear> | undefined,
  on: TrainEvents | undefined,
): void {
  const meant = pointwise.filter((linear) => targets?.has(linear) ?? true).map(({ name }) => name)
  if (meant.length === 0) return
  const names = meant.slice(0, 5).join(', ') + (meant.length > 5 ? ` and ${meant.length - 5} more` : '')
  on?.warning?.(
    targets === undefined
      ? `all-linear leaves out ${names}: the graph has convolutions of kernel 1 there, which PEFT's all-linear leaves out too. targetModules can name them`
      : `The adapter has ${names} as linear layers. The graph has convolutions of kernel 1 there, so PEFT reads the adapter only if the model has nn.Linear there`,
  )
}

/**
 * Adds `skipped` to a list of excluded modules, so that PEFT does not adapt them either: they are trained whole, or the
 * graph does not have them.
 */
function without({ excludeModules = [] }: LoraConfig, skipped: ReadonlySet<string>) {
  return skipped.size === 0 || typeof excludeModules === 'string'
    ? {}
    : { excludeModules: [...excludeModules, ...skipped] }
}
