// The task of a model where the caller names none. It reads the graph, and the table of tasks does without.

import { inputFamily } from '../graph/inputs/family.js'
import type { Model } from '../graph/model-folder.js'
import { readGraph } from '../graph/view/graph.js'
import type { TaskName } from './tasks.js'

export function defaultTask({ graphs, onnx }: Pick<Model, 'graphs' | 'onnx'>): TaskName {
  const hasEncoder = graphs.encoder !== undefined || inputFamily(readGraph(onnx.proto))?.behindEncoder !== undefined
  return hasEncoder ? 'seq2seq' : 'causal-lm'
}
