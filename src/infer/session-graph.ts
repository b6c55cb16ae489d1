// The graph that a session opens, made of the model's own.

import { create } from '@bufbuild/protobuf'
import { type ModelProto, ValueInfoProtoSchema } from '../formats/onnx/gen/onnx_pb.js'
import type { OnnxModel } from '../formats/onnx/model.js'
import { fuseAttention } from '../graph/fuse/attention.js'
import { injectLora } from '../graph/inject/inject.js'
import { tokenInputs } from '../graph/inputs/tokens.js'
import { exposeProducts, findLinears, type ModuleMap } from '../graph/match/linears.js'
import { Graph } from '../graph/view/graph.js'
import { readGraph } from '../graph/view/read-graph.js'
import { tokenColumns } from './column-runs.js'
import type { OpenRequest } from './engine.js'
import { sitesOf } from './site-factors.js'

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
  /** Modules that get LoRA inputs, and those of them that get a scale and a shift too. */
  readonly adapted: ReadonlySet<string>
  readonly affine: ReadonlySet<string>
  /** Values that are given out beside the model's outputs. */
  readonly given: ReadonlySet<string>
}

/** A fresh edit of the model's graph, and what the engine has to know of it. */
export function sessionGraph(
  onnx: OnnxModel,
  { before, modules, adapted, affine, given }: SessionEdit,
  providers: readonly string[] = [],
): Omit<OpenRequest, 'model' | 'options'> & { graph: ModelProto } {
  const graph = new Graph(onnx.proto)
  before(graph)
  graph.outputs.push(...Array.from(given, (name) => create(ValueInfoProtoSchema, { name })))
  const isOnProcessor = providers.every((name) => ON_PROCESSOR.has(name))
  const isFused = isOnProcessor && fuseAttention(graph) > 0
  const found = findLinears(graph, modules).filter(({ name }) => adapted.has(name))
  const linears = exposeProducts(graph, found)
  const { takesRows } = injectLora(graph, linears, affine)
  return {
    graph: graph.toModel(),
    sites: sitesOf(linears, affine),
    takesRows,
    idleRank: isOnProcessor ? 0 : 1,
    columns: isFused ? tokenColumns(tokenInputs(readGraph(onnx.proto))) : undefined,
  }
}
