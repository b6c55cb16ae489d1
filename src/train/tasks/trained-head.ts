// The head that a task trains whole: the graph's head if it has the same labels, or a new head as transformers makes it
// for this type of model.

import { attempt, listed, UnsupportedError } from '../../core/base/errors.js'
import type { Random } from '../../core/base/random.js'
import { elementCount } from '../../core/base/tensor.js'
import type { HeadForm, HeadLayer } from '../../model/families/family.js'
import type { HeadInput } from '../../model/heads/head-rows.js'
import {
  appendHead,
  type HeadBase,
  headInput,
  headTensors,
  headWidth,
  namedLabels,
  trainedLayers,
} from '../../model/heads/heads.js'
import { findEmbeddings } from '../../model/match/forms/lookup.js'
import { findLinears, logitsDims, logitsName } from '../../model/match/linears.js'
import { readBaseTensor } from '../../model/match/read-base-tensor.js'
import type { Model } from '../../model/model-folder.js'
import { placeWhole } from '../../model/place/place.js'
import type { Value } from '../../onnx/view/builder.js'
import { type Graph, readGraph } from '../../onnx/view/graph.js'
import type { ObjectiveGraph } from '../graph/objective-graph.js'

/** transformers' standard deviation of new weights, used if config.json has none. */
const INITIALIZER_RANGE = 0.02

export function headBase(model: Model): HeadBase {
  const graph = readGraph(model.onnx)
  return { config: model.config, graph, linears: findLinears(graph) }
}

export function checkHead(form: HeadForm, base: HeadBase): void {
  requireInput(form, base.graph, trainedLayers(form, base))
  const isThere = form.layers.some(({ module }) => base.linears.some(({ name, isHead }) => isHead && name === module))
  const axes = logitsDims(base.graph)?.length
  const expected = form.rows === 'all' ? 3 : 2
  if (!isThere || axes === undefined || axes === expected) return
  throw new UnsupportedError({
    where: 'ONNX model',
    what: `its head gives labels to ${axes === 3 ? 'tokens' : 'whole inputs'}, which is another task`,
    expected: `logits of ${expected} axes`,
    got: `${logitsName(base.graph)} of ${axes} axes`,
    hint: 'Export the model without its head: optimum-cli export onnx --task feature-extraction',
  })
}

function requireInput(form: HeadForm, graph: Graph, layers: readonly HeadLayer[]): HeadInput {
  const input = headInput(form, graph, layers)
  if (input !== undefined) return input
  const got = graph.outputs.map(({ name }) => name).join(', ')
  throw new UnsupportedError({ where: 'ONNX model', what: 'no output has the hidden states that a head needs', got })
}

export interface HeadOptions {
  /** Start with a new head even if the model's head fits. Default false. */
  readonly newHead?: boolean
}

/** Layers after the model's hidden states that are trained whole. */
export class TrainedHead {
  /** PEFT's modules_to_save: the modules that hold the tensors. */
  readonly modulesToSave: readonly string[]
  readonly tensors: readonly {
    /** In the PyTorch model, such as classifier.weight, and in {@link ObjectiveGraph.parameter}. */
    readonly name: string
    readonly shape: readonly number[]
    start(random: Random): Promise<Float32Array>
  }[]
  /** True if the head starts from random values, as in transformers, and not from the model's head. */
  readonly isNew: boolean
  readonly warnings: readonly string[]
  readonly #layers: readonly HeadLayer[]
  readonly #hasPrefix: boolean

  constructor(
    private readonly model: Model,
    base: HeadBase,
    private readonly form: HeadForm,
    labels: readonly string[],
    { newHead = false }: HeadOptions,
  ) {
    this.#layers = trainedLayers(form, base)
    this.#hasPrefix = base.linears.some(({ name }) => name.startsWith(`${form.encoder}.`))
    this.modulesToSave = form.modulesToSave.filter((module) =>
      this.#layers.some((layer) => `.${layer.module}.`.includes(`.${module}.`)),
    )
    const tensors = headTensors(this.#layers, headWidth(form, base, this.#layers), labels.length)
    const inGraph = headOfGraph(base, this.#layers)
    const isStored = (tensor: Tensor) => tensor.member === 'bias' || inGraph?.tensorOf(tensor) !== undefined
    const fits = inGraph?.labels.join('\n') === labels.join('\n') && tensors.every(isStored)
    this.isNew = newHead || !fits
    this.warnings =
      inGraph === undefined || newHead || fits
        ? []
        : [
            `the head of the model gives ${listed(inGraph.labels, 'labels')}, and the data has ${listed(labels, 'labels')}: a new head is trained`,
          ]
    this.tensors = tensors.map((tensor) => ({
      name: `${tensor.layer.module}.${tensor.member}`,
      shape: tensor.shape,
      start: async (random: Random) => {
        if (this.isNew) return this.#newValues(tensor, random)
        const stored = inGraph?.tensorOf(tensor)
        // The graph's head has no bias: start at 0.
        if (stored === undefined) return new Float32Array(elementCount(tensor.shape))
        return readBaseTensor(model.onnx, base.graph, stored, tensor.shape[0])
      },
    }))
  }

  input({ graph }: ObjectiveGraph): HeadInput {
    return requireInput(this.form, graph, this.#layers)
  }

  logits(graph: ObjectiveGraph, input: HeadInput): Value {
    const parameters = new Map(this.tensors.map(({ name, shape }) => [name, graph.parameter(name, shape)]))
    return appendHead(graph.g, input, this.#layers, (name) => parameters.get(name))
  }

  /** Returns the name of a module of the graph in the PyTorch model with this head. */
  moduleName(name: string): string {
    const isWhole = this.#hasPrefix || this.form.layers.some(({ module }) => module === name)
    return isWhole || this.form.encoder === '' ? name : `${this.form.encoder}.${name}`
  }

  #newValues({ layer: { kind }, member, shape }: Tensor, random: Random): Float32Array {
    const range = this.model.config.initializer_range
    const deviation = typeof range === 'number' ? range : INITIALIZER_RANGE
    if (kind === 'norm') return new Float32Array(elementCount(shape)).fill(member === 'weight' ? 1 : 0)
    return Float32Array.from({ length: elementCount(shape) }, () =>
      member === 'bias' ? 0 : deviation * random.normal(),
    )
  }
}

type Tensor = ReturnType<typeof headTensors>[number]

/** The graph's head, with labels from config.json or transformers' default names. */
function headOfGraph({ config, graph, linears }: HeadBase, layers: readonly HeadLayer[]) {
  const last = linears.find(({ name, isHead }) => isHead && name === layers.at(-1)?.module)
  if (last === undefined) return undefined
  const named = namedLabels(config)
  const labels = named.length > 0 ? named : Array.from({ length: last.d }, (_, i) => `LABEL_${i}`)
  const model = { graph, linears, embeddings: findEmbeddings(graph), config, use: 'training' } as const
  const tensorOf = ({ layer: { module }, member, shape }: Tensor) =>
    attempt(() => placeWhole(model, { name: `${module}.${member}`, module, shape })).value
  return { labels, tensorOf }
}
