// Embeddings with branches whose factors are graph inputs: y' = y + s·(A[:, ids])ᵀ·Bᵀ with A (r, V) and Bᵀ (r, D). As
// in PEFT, no dropout comes before them.

import { siteInput } from '../../model/inject/sites.js'
import type { NamedLayer } from '../../model/match/forms/form.js'
import type { Placement } from '../../model/place/placement.js'
import { DataType } from '../../onnx/format/tensors.js'
import type { CustomGradients } from '../../onnx/gradients/backward.js'
import { Builder } from '../../onnx/view/builder.js'
import type { Graph } from '../../onnx/view/graph.js'

export type TrainedLookup = NamedLayer & { readonly rank: number; readonly scaling: number }

export function adaptLookups(
  graph: Graph,
  lookups: readonly TrainedLookup[],
  placements: readonly Placement[],
  custom: CustomGradients,
): void {
  if (lookups.length === 0) return
  const g = new Builder(graph, 'lora')
  for (const at of placements) {
    const layer = lookups.find(({ name }) => name === at.part)
    if (at.kind !== 'layer' || layer === undefined) continue
    const { linear } = at
    const [weightA, weightB] = [siteInput(layer.name, 'A'), siteInput(layer.name, 'B')]
    const ids = g.reshape(g.cast(linear.input, DataType.INT64), g.int([-1]))
    const low = g.op('Gather', [weightA, ids], { axis: 1 })
    // The general rule multiplies by a matrix of all rows and all tokens.
    custom.set(low, {
      inputs: [weightA],
      rule: ({ g: back, dy }) => [
        () => {
          const zeros = back.expand(back.float(0), back.shape(back.transpose(weightA, [1, 0])))
          const rows = [zeros, back.unsqueeze(ids, [1]), back.transpose(dy, [1, 0])]
          return back.transpose(back.op('ScatterND', rows, { reduction: 'add' }), [1, 0])
        },
      ],
    })
    graph.putBehind(linear.last.output[0], (base) => {
      const product = g.op('Gemm', [low, weightB], { transA: 1, alpha: { float: layer.scaling } })
      return g.add(base, g.reshape(product, g.shape(base)))
    })
  }
}
