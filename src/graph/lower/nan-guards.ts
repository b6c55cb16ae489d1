// Attention whose exporter makes zeros of rows that see no token. WebGPU has no IsNaN: each of them would send the
// probabilities to the processor, and wait.

import { DataType } from '../../formats/onnx/tensors.js'
import { Builder } from '../view/builder.js'
import type { Graph } from '../view/graph.js'

/** The exponential of less is zero too. */
const LEAST = -1e30

/** Such rows see all tokens alike afterwards. They are padding, which nothing reads. Half precision stays as it is. */
export function dropNanGuards(graph: Graph): void {
  if ([...graph.initializers.values()].some(({ dataType }) => dataType === DataType.FLOAT16)) return
  const g = new Builder(graph, 'unguarded')
  for (const { input, output } of graph.nodes.filter(({ opType }) => opType === 'IsNaN')) {
    const softmax = graph.producer(input[0])
    const guards = graph.consumers(output[0])
    const isGuarded = guards.every((node) => node.opType === 'Where' && node.input[2] === input[0])
    if (softmax?.opType !== 'Softmax' || !isGuarded) continue
    graph.setInput(softmax, 0, g.op('Clip', [softmax.input[0], g.float(LEAST)]))
    for (const guard of guards) graph.replaceUses(guard.output[0], input[0])
  }
  graph.prune()
}
