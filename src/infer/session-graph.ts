// The graph that a session opens, made of the model's own.

import { create } from '@bufbuild/protobuf'
import { type ModelProto, ValueInfoProtoSchema } from '../formats/onnx/gen/onnx_pb.js'
import type { OnnxModel } from '../formats/onnx/model.js'
import { fuseAttention } from '../graph/fuse/attention.js'
import { tokenInputs } from '../graph/inputs/tokens.js'
import type { ModuleMap } from '../graph/match/linears.js'
import { Graph } from '../graph/view/graph.js'
import { readGraph } from '../graph/view/read-graph.js'
import { adaptGraph, type GraphNeeds } from './adapt-graph.js'
import { tokenColumns } from './column-runs.js'
import type { OpenRequest } from './engine.js'

/**
 * Providers that take tensors without elements, and a bias in fused attention. On others an idle site gets zeros of rank 1, and attention
 * stays as it is written.
 */
const ON_PROCESSOR = new Set(['cpu', 'wasm'])

/** What a session changes of a graph. */
export interface SessionEdit {
  /** Comes first. */
  readonly before: (graph: Graph) => void
  readonly modules: ModuleMap
  /** The inputs that adapters need. */
  readonly needs: GraphNeeds
  /** Values that are given out beside the model's outputs. */
  readonly given: ReadonlySet<string>
}

/** A fresh edit of the model's graph, and what the engine has to know of it. */
export function sessionGraph(
  onnx: OnnxModel,
  { before, modules, needs, given }: SessionEdit,
  providers: readonly string[] = [],
): Omit<OpenRequest, 'model' | 'options'> & { graph: ModelProto } {
  const graph = new Graph(onnx.proto)
  before(graph)
  graph.outputs.push(...Array.from(given, (name) => create(ValueInfoProtoSchema, { name })))
  const isOnProcessor = providers.every((name) => ON_PROCESSOR.has(name))
  const isFused = isOnProcessor && fuseAttention(graph) > 0
  const sites = adaptGraph(graph, modules, needs)
  return {
    graph: graph.toModel(),
    ...sites,
    idleRank: isOnProcessor ? 0 : 1,
    columns: isFused ? tokenColumns(tokenInputs(readGraph(onnx.proto))) : undefined,
  }
}
