// Takes key-value caches out of graphs for training, which has no past tokens.

import { isCacheInput, isState } from '../../model/inputs/cache.js'
import { splitInputs } from '../../model/inputs/roles.js'
import { Builder } from '../../onnx/view/builder.js'
import type { Graph } from '../../onnx/view/graph.js'
import { dimsOfInput } from '../../onnx/view/value-info.js'

/** Removes the inputs of caches. States of convolutions become zeros. */
export function dropEmptyCache(graph: Graph): void {
  const g = new Builder(graph, 'inputs')
  const empty = splitInputs(graph).others.filter(isCacheInput)
  const states = new Map(empty.map((input) => [input.name, isState(graph, input) ? dimsOfInput(input)[2] : 0]))
  const open = [...states.keys()]
  for (let past = open.pop(); past !== undefined; past = open.pop()) {
    const width = states.get(past) ?? 0
    for (const node of graph.consumers(past)) {
      const [fresh, ...more] = node.input.filter((input) => input !== past)
      if (node.opType !== 'Concat' || more.length > 0) continue
      // Exporters also write a Concat of a single input.
      if (fresh === undefined) open.push(node.output[0])
      else if (width > 0) graph.replaceUses(node.output[0], g.op('Pad', [fresh, g.int([0, 0, width, 0, 0, 0])]))
      else graph.replaceUses(node.output[0], fresh)
    }
  }
}
