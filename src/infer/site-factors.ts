// What a session feeds for one adapter: factors as they are multiplied, and, for layers that are more than W + s·B·A, the scale and
// the shift of their outputs.

import { NumericError } from '../base/errors.js'
import type { OnnxModel } from '../formats/onnx/model.js'
import { affineOf } from '../graph/inject/affine.js'
import { affineInputs, loraInputs } from '../graph/inject/inject.js'
import type { Linear } from '../graph/match/linears.js'
import type { PlacedLayer } from '../graph/match/place-adapter.js'
import type { Graph } from '../graph/view/graph.js'
import { transpose } from '../linalg/product.js'
import type { LoraLayer } from '../lora/layer.js'
import type { AdapterFactors, LoraSite, SiteFactors } from './sites.js'

/**
 * By the model's module names. The base is read for DoRA alone.
 *
 * @throws UnsupportedError naming the node when DoRA's scales cannot be computed from its weight, NumericError when a value is not
 *   finite
 */
export async function adapterFactors(
  model: OnnxModel,
  graph: Graph,
  placed: readonly PlacedLayer[],
): Promise<AdapterFactors> {
  const factors = new Map<string, SiteFactors>()
  for (const { name, layer, linear } of placed) {
    if (factors.has(linear.name)) continue
    const affine = await affineOf(model, graph, linear, layer)
    factors.set(linear.name, { ...siteFactors(name, layer), affine })
  }
  return factors
}

function siteFactors(name: string, { weightA, weightB, rank, scaling }: LoraLayer): Omit<SiteFactors, 'affine'> {
  const a = Float32Array.from(transpose(weightA).data)
  const b = Float32Array.from(transpose(weightB).data, (value) => scaling * value)
  if (!a.every(Number.isFinite) || !b.every(Number.isFinite)) {
    throw new NumericError({ where: name, what: 'the adapter holds values that are not finite' })
  }
  return { rank, weightA: a, weightB: b }
}

/** What can move to a worker. */
export function buffersOf(factors: AdapterFactors): ArrayBufferLike[] {
  return [...factors.values()].flatMap(({ weightA, weightB, affine }) => {
    const vectors = affine === undefined ? [] : [affine.scale.buffer, affine.shift.buffer]
    return [weightA.buffer, weightB.buffer, ...vectors]
  })
}

/** One site a module: linears of one name share their inputs. */
export function sitesOf(linears: readonly Linear[], affine: ReadonlySet<string>): LoraSite[] {
  const site = ({ name, k, d }: Linear): LoraSite => {
    return { module: name, ...loraInputs(name), affine: affine.has(name) ? affineInputs(name) : undefined, k, d }
  }
  return [...new Map(linears.map((linear) => [linear.name, site(linear)])).values()]
}
