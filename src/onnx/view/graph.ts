// A mutable view of an ONNX graph. Nodes stay protobuf messages, so that unknown fields survive a round trip.
// Format: https://onnx.ai/onnx/repo-docs/IR.html

import { FormatError, StateError } from '../../core/base/errors.js'
import { copyMessage } from '../format/messages.js'
import type { OnnxModel } from '../format/model.js'
import { create } from '../format/protobuf.js'
import {
  type GraphProto,
  integersOf,
  type ModelProto,
  ModelProtoSchema,
  type NodeProto,
  OperatorSetIdProtoSchema,
  type TensorProto,
  type ValueInfoProto,
} from '../format/tensors.js'
import { constantTensor } from './attributes.js'
import { Branches } from './branches.js'
import { labelOf } from './operators.js'
import { declaredOf } from './value-info.js'

/** A mutable graph. `producer` and `consumers` use indexes: after editing `nodes` or a node by hand, `invalidate`. */
export class Graph {
  readonly #model: ModelProto
  readonly #proto: GraphProto
  /** The nodes, in any order; `toModel` sorts them. */
  nodes: NodeProto[]
  readonly initializers: Map<string, TensorProto>
  inputs: ValueInfoProto[]
  outputs: ValueInfoProto[]
  valueInfo: ValueInfoProto[]
  readonly #names = new Set<string>()
  readonly #nextSuffix = new Map<string, number>()
  readonly #raisedOpsets = new Map<string, number>()
  readonly #branches = new Branches()
  #producers: Map<string, NodeProto> | undefined
  #consumers: Map<string, NodeProto[]> | undefined

  /** Edits do not change `model`. {@link Branches} of If are opened. */
  constructor(model: ModelProto) {
    const proto = model.graph as GraphProto
    this.#model = model
    this.#proto = proto
    this.initializers = new Map(proto.initializer.map((tensor) => [tensor.name, tensor]))
    // Files up to IR version 3 list initializers among the inputs as well.
    this.inputs = proto.input.filter((input) => !this.initializers.has(input.name))
    this.outputs = [...proto.output]
    this.valueInfo = [...proto.valueInfo]
    for (const input of proto.input) this.#names.add(input.name)
    for (const name of this.initializers.keys()) this.#names.add(name)
    for (const node of proto.node) for (const name of [node.name, ...node.output]) this.#names.add(name)
    this.nodes = this.#branches.open(proto.node, { names: this.#names, initializers: this.initializers })
    for (const node of this.nodes) this.#names.add(node.name)
  }

  get producerName(): string {
    return this.#model.producerName
  }

  /** Returns the node that makes a value; undefined for inputs and initializers. */
  producer(value: string): NodeProto | undefined {
    if (this.#producers === undefined) {
      this.#producers = new Map()
      for (const node of this.nodes) {
        for (const output of node.output) if (output !== '') this.#producers.set(output, node)
      }
    }
    return this.#producers.get(value)
  }

  /** Returns the nodes that read a value, each once. */
  consumers(value: string): readonly NodeProto[] {
    if (this.#consumers === undefined) {
      this.#consumers = new Map()
      for (const node of this.nodes) this.#registerReader(node)
    }
    return this.#consumers.get(value) ?? []
  }

  /** Yields values and all values that they are made of, each once with its maker. `enters` can stop at a node. */
  *madeOf(values: readonly string[], enters: (node: NodeProto, value: string) => boolean = () => true) {
    const seen = new Set([''])
    const open = [...values]
    for (let next = open.pop(); next !== undefined; next = open.pop()) {
      if (seen.has(next)) continue
      seen.add(next)
      const node = this.producer(next)
      yield [next, node] as const
      if (node !== undefined && enters(node, next)) open.push(...readBy(node))
    }
  }

  setInputs(node: NodeProto, inputs: readonly string[]): void {
    this.#forgetReader(node)
    node.input = [...inputs]
    this.#registerReader(node)
  }

  setInput(node: NodeProto, index: number, value: string): void {
    this.setInputs(node, node.input.with(index, value))
  }

  /** Renames an output. Readers keep reading the old name. */
  setOutput(node: NodeProto, index: number, name: string): void {
    const old = node.output[index]
    if (this.#producers?.get(old) === node) this.#producers.delete(old)
    node.output[index] = name
    this.#producers?.set(name, node)
  }

  /** Renames a value, also for its readers. */
  rename(value: string, name: string): void {
    const maker = this.producer(value)
    if (maker === undefined) throw new StateError({ where: `value ${value}`, what: 'no node makes it' })
    this.replaceUses(value, name)
    this.setOutput(maker, maker.output.indexOf(value), name)
  }

  /**
   * Inserts the nodes of `make` after a value, so that its readers get their result. The result gets the value's name,
   * and the value a new name, which `make` gets and which is returned.
   */
  putBehind(value: string, make: (base: string) => string, hint = 'base'): string {
    const maker = this.producer(value) as NodeProto
    const base = this.freshName(`${value}/${hint}`)
    this.setOutput(maker, maker.output.indexOf(value), base)
    const made = make(base)
    const last = this.producer(made) as NodeProto
    this.setOutput(last, last.output.indexOf(made), value)
    return base
  }

  /** Call after changing `nodes`, or a node's inputs or outputs, other than by a method. */
  invalidate(): void {
    this.#producers = undefined
    this.#consumers = undefined
  }

  add(node: NodeProto): void {
    this.nodes.push(node)
    for (const output of node.output) this.#producers?.set(output, node)
    this.#registerReader(node)
  }

  /** Removes a node. Its outputs then have no maker. */
  remove(node: NodeProto): void {
    this.nodes = this.nodes.filter((kept) => kept !== node)
    this.#forgetReader(node)
    for (const output of node.output) if (this.#producers?.get(output) === node) this.#producers.delete(output)
  }

  /** Removes a node and lets `values` take the names of its outputs. */
  replace(node: NodeProto, values: readonly (string | undefined)[]): void {
    this.remove(node)
    node.output.forEach((name, i) => {
      const value = values[i]
      if (name !== '' && value !== undefined) this.rename(value, name)
    })
  }

  #registerReader(node: NodeProto): void {
    if (this.#consumers === undefined) return
    for (const input of node.input) {
      const list = this.#consumers.get(input)
      if (list === undefined) this.#consumers.set(input, [node])
      else if (list.at(-1) !== node) list.push(node)
    }
  }

  #forgetReader(node: NodeProto): void {
    for (const input of node.input) {
      const others = this.#consumers?.get(input)?.filter((reader) => reader !== node)
      if (others !== undefined) this.#consumers?.set(input, others)
    }
  }

  /** Adds an initializer, or replaces the one with the same name. */
  addInitializer(tensor: TensorProto): string {
    this.initializers.set(tensor.name, tensor)
    this.#names.add(tensor.name)
    return tensor.name
  }

  constant(value: string): TensorProto | undefined {
    const tensor = this.initializers.get(value)
    if (tensor !== undefined) return tensor
    const node = this.producer(value)
    if (node?.opType === 'Identity') return this.constant(node.input[0])
    return node?.opType === 'Constant' ? constantTensor(node) : undefined
  }

  /** Returns the elements of an integer constant; undefined if the model file does not contain them. */
  integers(value = ''): number[] | undefined {
    const tensor = this.constant(value)
    return tensor && integersOf(tensor)
  }

  given(node: NodeProto, output: string): { name: string; value: string }[] | undefined {
    return this.#branches.given(node, output)
  }

  /** Replaces an If by its `then_branch` or `else_branch`. */
  takeBranch(node: NodeProto, name: string): void {
    const taken = this.#branches.take(node, name)
    this.nodes = this.nodes.flatMap((existing) => (existing === node ? taken : [existing]))
    this.invalidate()
  }

  /** Returns type and shape of an input, an initializer or a value in value_info. */
  declared(value: string): ReturnType<typeof declaredOf> {
    const tensor = this.initializers.get(value)
    if (tensor !== undefined) return { elemType: tensor.dataType, dims: tensor.dims.map(Number) }
    const isSame = (info: ValueInfoProto) => info.name === value
    return declaredOf(this.inputs.find(isSame) ?? this.valueInfo.find(isSame))
  }

  freshName(hint: string): string {
    let name = hint
    let suffix = this.#nextSuffix.get(hint) ?? 1
    for (; this.#names.has(name); suffix++) name = `${hint}_${suffix}`
    this.#nextSuffix.set(hint, suffix)
    this.#names.add(name)
    return name
  }

  replaceUses(from: string, to: string): void {
    const moved = (input: string) => (input === from ? to : input)
    for (const node of this.consumers(from)) this.setInputs(node, node.input.map(moved))
  }

  /** Returns the version of an operator set, or 0 if it is not imported. '' and 'ai.onnx' are the same domain. */
  opset(domain = ''): number {
    const imported = this.#model.opsetImport.find((entry) => sameDomain(entry.domain, domain))
    return this.#raisedOpsets.get(domain) ?? Number(imported?.version ?? 0)
  }

  /** Removes nodes and initializers that no output needs, and with `inputs` also graph inputs. */
  prune(options: { inputs?: boolean } = {}): void {
    const needed = new Map(this.madeOf(this.outputs.map(({ name }) => name)))
    const kept = new Set(needed.values())
    this.nodes = this.nodes.filter((node) => kept.has(node))
    for (const name of [...this.initializers.keys()]) if (!needed.has(name)) this.initializers.delete(name)
    if (options.inputs) this.inputs = this.inputs.filter((input) => needed.has(input.name))
    this.invalidate()
  }

  /** Sorts nodes after the makers of their inputs. Throws FormatError if nodes depend on one another in a circle. */
  sort(): void {
    const open = new Set<NodeProto>()
    const done = new Set<NodeProto>()
    for (const root of this.nodes) {
      const stack = [root]
      for (let node = stack.at(-1); node !== undefined; node = stack.at(-1)) {
        if (open.has(node)) {
          done.add(node)
          stack.pop()
          continue
        }
        open.add(node)
        // In this order, the maker of the first input comes first.
        for (const input of readBy(node).toReversed()) {
          const maker = this.producer(input)
          if (maker === undefined || done.has(maker)) continue
          if (open.has(maker)) throw new FormatError({ where: labelOf(maker), what: 'the graph has a circle' })
          stack.push(maker)
        }
      }
    }
    this.nodes = [...done]
  }

  requireOpset(domain: string, version: number): void {
    if (this.opset(domain) < version) this.#raisedOpsets.set(domain, version)
  }

  /** Returns an empty graph for the body of a Scan in this graph. */
  newBody(): Graph {
    const opsetImport = ['', 'com.microsoft'].map((domain) => importOf([domain, this.opset(domain)]))
    return new Graph(create(ModelProtoSchema, { irVersion: MIN_IR_VERSION, opsetImport, graph: { name: 'body' } }))
  }

  /** Returns the model with this graph, sorted. All else is as in the original model. */
  toModel(): ModelProto {
    this.sort()
    const raised = [...this.#raisedOpsets]
    const isRaised = ({ domain }: { domain: string }) => raised.some(([name]) => sameDomain(domain, name))
    const opsetImport = this.#model.opsetImport.filter((entry) => !isRaised(entry)).concat(raised.map(importOf))
    const graph = copyMessage(this.#proto, {
      node: this.#branches.fold(this.nodes, (hint) => this.freshName(hint)),
      initializer: [...this.initializers.values()],
      input: this.inputs,
      output: this.outputs,
      valueInfo: this.valueInfo,
    })
    // An older version is raised: before version 4, initializers also had to be inputs, and here they are not.
    const irVersion = this.#model.irVersion < MIN_IR_VERSION ? MIN_IR_VERSION : this.#model.irVersion
    return copyMessage(this.#model, { irVersion, opsetImport, graph })
  }
}

/** The first version of the format that has all operator sets up to 17. */
const MIN_IR_VERSION = 8n

const importOf = ([domain, version]: readonly [string, number]) =>
  create(OperatorSetIdProtoSchema, { domain, version: BigInt(version) })

function sameDomain(a: string, b: string): boolean {
  return a === b || ((a === '' || a === 'ai.onnx') && (b === '' || b === 'ai.onnx'))
}

/** Operators with sub-graphs. Looking through all attributes of all nodes instead would be slow. */
const WITH_BODIES = new Set('If Loop Scan SequenceMap BeamSearch GreedySearch Sampling WhisperBeamSearch'.split(' '))

/** Returns the inputs of a node, and {@link implicitInputs}. */
export function readBy(node: NodeProto): readonly string[] {
  const implicit = implicitInputs(node)
  return implicit.length === 0 ? node.input : [...node.input, ...implicit]
}

/** Values of the outer graph that a node's sub-graphs (If, Loop, Scan) read. */
export function implicitInputs(node: NodeProto): readonly string[] {
  if (!WITH_BODIES.has(node.opType)) return []
  const result: string[] = []
  for (const graph of subgraphs(node)) {
    const local = new Set([...graph.input, ...graph.initializer].map((entry) => entry.name))
    for (const inner of graph.node) {
      result.push(...readBy(inner).filter((input) => !local.has(input)))
      for (const output of inner.output) local.add(output)
    }
    for (const output of graph.output) if (!local.has(output.name)) result.push(output.name)
  }
  return result
}

/** Returns the graphs inside a node: branches of If, bodies of Loop and Scan. */
export function subgraphs(node: NodeProto): GraphProto[] {
  return node.attribute.flatMap(({ g, graphs }) => g ?? graphs)
}

/** Returns the shared view of a model, which must not be edited. To edit, make a new `Graph`. */
export function readGraph(model: OnnxModel): Graph {
  return model.once(readGraph, () => new Graph(model.proto))
}
