// Rows of a batch: how many there are, and whether a graph keeps them apart.

import { UnsupportedError } from '../base/errors.js'
import { dimsOfInput } from '../graph/inputs/roles.js'
import type { Graph } from '../graph/view/graph.js'
import type { Feeds, RuntimeTensor } from '../runtime/runtime.js'

/** The length of the first axis that all feeds with the most axes share; undefined where there is none. */
export function batchOf(feeds: Feeds): number | undefined {
  const ids = feeds.input_ids ?? feeds.pixel_values ?? feeds.inputs_embeds ?? Object.values(feeds)[0]
  return ids?.dims[0]
}

/** Throws UnsupportedError where outputs have got another number of axes: some layer sees the rows as one matrix. */
export function checkRanks(graph: Graph, outputs: Readonly<Record<string, RuntimeTensor>>): void {
  for (const output of graph.outputs) {
    const declared = dimsOfInput(output).length
    const got = outputs[output.name]?.dims
    if (got === undefined || declared === 0 || got.length === declared) continue
    throw new UnsupportedError({
      where: `output ${output.name}`,
      what: 'rows with adapters of their own cannot be told apart in this graph',
      expected: `${declared} axes`,
      got: `(${got.join(', ')})`,
      hint: 'Run the rows of one adapter at a time',
    })
  }
}
