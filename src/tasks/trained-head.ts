// The head that a task trains whole: that of the graph, or a new one as transformers puts it on an encoder of this type.

import { decodeFloats } from '../base/dtype.js'
import { UnsupportedError } from '../base/errors.js'
import type { Random } from '../base/random.js'
import { elementCount } from '../base/tensor.js'
import { TensorProto_DataType as DataType } from '../formats/onnx/gen/onnx_pb.js'
import { findLinears, logitsName } from '../graph/match/linears.js'
import type { Model } from '../graph/model-folder.js'
import type { ObjectiveGraph } from '../graph/training/objective-graph.js'
import type { Value } from '../graph/view/builder.js'
import type { Graph } from '../graph/view/graph.js'
import { readGraph } from '../graph/view/read-graph.js'
import type { HeadInput } from './head-rows.js'
import {
  appendHead,
  type HeadBase,
  type HeadForm,
  type HeadLayer,
  headInput,
  headTensors,
  headWidth,
  trainedLayers,
} from './heads.js'
import type { Head } from './task.js'

/** The standard deviation of a new head where config.json gives none: that of transformers. */
const INITIALIZER_RANGE = 0.02

/** What a head is found by. */
export function headBase(model: Model): HeadBase {
  const graph = readGraph(model.onnx.proto)
  return { config: model.config, graph, linears: findLinears(graph) }
}

/** Throws UnsupportedError for a graph with other logits than those of such a head, or without the hidden states that it needs. */
export function checkHead(form: HeadForm, base: HeadBase): void {
  requireInput(form, base.graph, trainedLayers(form, base))
  const isThere = form.layers.some(({ module }) => base.linears.some(({ name, isHead }) => isHead && name === module))
  const logits = base.graph.outputs.find(({ name }) => name === logitsName(base.graph))
  const type = logits?.type?.value
  const axes = type?.case === 'tensorType' ? type.value.shape?.dim.length : undefined
  const expected = form.rows === 'all' ? 3 : 2
  if (!isThere || axes === undefined || axes === expected) return
  throw new UnsupportedError({
    where: 'ONNX model',
    what: `its head gives labels to ${axes === 3 ? 'tokens' : 'whole inputs'}, which is another task`,
    expected: `logits of ${expected} axes`,
    got: `${logits?.name} of ${axes} axes`,
    hint: 'Export the model without its head: optimum-cli export onnx --task feature-extraction',
  })
}

function requireInput(form: HeadForm, graph: Graph, layers: readonly HeadLayer[]): HeadInput {
  const input = headInput(form, graph, layers)
  if (input !== undefined) return input
  const got = graph.outputs.map(({ name }) => name).join(', ')
  throw new UnsupportedError({ where: 'ONNX model', what: 'no output has the hidden states that a head needs', got })
}

/** A head of `count` logits on a model. */
export class TrainedHead implements Head {
  readonly modulesToSave: readonly string[]
  readonly tensors: Head['tensors']
  readonly #model: Model
  readonly #form: HeadForm
  /** The layers that are trained, the last ones of the form. */
  readonly #layers: readonly HeadLayer[]
  readonly #hasPrefix: boolean

  constructor(model: Model, form: HeadForm, count: number) {
    const base = headBase(model)
    this.#model = model
    this.#form = form
    this.#layers = trainedLayers(form, base)
    this.#hasPrefix = base.linears.some(({ name }) => name.startsWith(`${form.encoder}.`))
    this.modulesToSave = form.modulesToSave.filter((module) =>
      this.#layers.some((layer) => `.${layer.module}.`.includes(`.${module}.`)),
    )
    const width = headWidth(form, base, this.#layers)
    this.tensors = headTensors(this.#layers, width, count).map(({ layer, member, shape }) => ({
      name: `${layer.module}.${member}`,
      shape,
      start: (random: Random) => this.#start(base, { layer, member, shape }, random),
    }))
  }

  /** What goes into the first layer that is trained. Throws UnsupportedError where the graph has it not. */
  input({ graph }: ObjectiveGraph): HeadInput {
    return requireInput(this.#form, graph, this.#layers)
  }

  /** Builds the head with new trained tensors. */
  logits(graph: ObjectiveGraph, input: HeadInput): Value {
    const parameters = new Map(this.tensors.map(({ name, shape }) => [name, graph.parameter(name, shape)]))
    return appendHead(graph.g, input, this.#layers, (name) => parameters.get(name))
  }

  /** The name that a module of the graph has in the PyTorch model with the head. */
  moduleName(name: string): string {
    const isWhole = this.#hasPrefix || this.#form.layers.some(({ module }) => module === name)
    return isWhole || this.#form.encoder === '' ? name : `${this.#form.encoder}.${name}`
  }

  /** The base's own values where the graph has them in this shape; else as transformers starts a new head. */
  async #start(
    { graph, linears }: HeadBase,
    { layer: { module, kind }, member, shape }: ReturnType<typeof headTensors>[number],
    random: Random,
  ): Promise<Float32Array> {
    const own = linears.find(({ name, form }) => name === module && form.name === 'Gemm')
    const tensor = own && graph.constant(own.node.input[member === 'weight' ? 1 : 2])
    const isSame = tensor?.dims.map(Number).join() === shape.join() && (member === 'bias' || own?.transposed)
    if (tensor !== undefined && isSame && tensor.dataType === DataType.FLOAT) {
      return decodeFloats(await this.#model.onnx.readTensor(tensor), 'F32').slice()
    }
    const range = this.#model.config.initializer_range
    const deviation = typeof range === 'number' ? range : INITIALIZER_RANGE
    if (kind === 'norm') return new Float32Array(elementCount(shape)).fill(member === 'weight' ? 1 : 0)
    return Float32Array.from({ length: elementCount(shape) }, () =>
      member === 'bias' ? 0 : deviation * random.normal(),
    )
  }
}
