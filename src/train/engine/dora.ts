// The norm of each row of a weight. DoRA starts its magnitudes from these norms, and divides outputs by them.

import { outputNorms } from '../../model/inject/affine.js'
import type { ModuleMap, NamedLayer } from '../../model/match/linears.js'
import type { Model } from '../../model/model-folder.js'
import { placedModel, placeFactors } from '../../model/place/place.js'
import { readGraph } from '../../onnx/view/graph.js'

/** Σ w² of each row (d). */
export async function squaresOfRows(model: Model, layers: readonly NamedLayer[], modules: ModuleMap | undefined) {
  const squares = new Map<string, Float64Array>()
  if (layers.length === 0) return squares
  const graph = readGraph(model.onnx)
  const widths = new Map(layers.map(({ name, d }) => [name, d]))
  for (const at of placeFactors(placedModel(graph, 'training', {}, modules), { layers })) {
    if (at.kind !== 'layer') continue
    const sums = squares.get(at.part) ?? new Float64Array(widths.get(at.part)!)
    sums.set((await outputNorms(model.onnx, graph, at.linear)).squares, at.start)
    squares.set(at.part, sums)
  }
  return squares
}
