// The norm of each row of a weight. DoRA starts its magnitudes from these norms, and divides outputs by them.

import { outputNorms } from '../../model/inject/affine.js'
import { withPointwise } from '../../model/match/forms/pointwise.js'
import { findLinears, type ModuleMap, type NamedLayer } from '../../model/match/linears.js'
import { matchLayers } from '../../model/match/match.js'
import { partsForGraph } from '../../model/match/packed.js'
import type { Model } from '../../model/model-folder.js'
import { readGraph } from '../../onnx/view/graph.js'

/** Σ w² of each row (d). */
export async function squaresOfRows(model: Model, layers: readonly NamedLayer[], modules: ModuleMap | undefined) {
  const squares = new Map<string, Float64Array>()
  if (layers.length === 0) return squares
  const graph = readGraph(model.onnx)
  const names = layers.map(({ name }) => name)
  const linears = withPointwise(graph, findLinears(graph, modules), names)
  for (const { layer: part, linear } of matchLayers(linears, partsForGraph(linears, layers, false))) {
    const { name, d } = part.layer
    const sums = squares.get(name) ?? new Float64Array(d)
    sums.set((await outputNorms(model.onnx, graph, linear)).squares, part.start)
    squares.set(name, sums)
  }
  return squares
}
