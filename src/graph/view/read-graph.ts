// One view of each model for all who only look things up.

import type { ModelProto } from '../../formats/onnx/gen/onnx_pb.js'
import { Graph } from './graph.js'

const views = new WeakMap<ModelProto, Graph>()

/** The model's graph, made once and shared: to read only. Who edits makes a `Graph` of their own. */
export function readGraph(model: ModelProto): Graph {
  let view = views.get(model)
  if (view === undefined) {
    view = new Graph(model)
    views.set(model, view)
  }
  return view
}
