// The scales of DoRA layers, m / ‖W + s·B·A‖ by output (Liu et al. 2024, arXiv 2402.09353). They take one pass over
// each such weight before the merge, because a norm needs the whole row, and a weight that is stored (k, d) is read
// across its rows.

import type { ByteSource } from '../base/bytes.js'
import { decodeWeights } from '../base/dtype.js'
import type { LayerMagnitude } from './plan/adapters.js'
import { Chunks, type OutputFile, sizeOf, type WeightPlan, windowsOf } from './plan/layout.js'
import { ChunkMerger, inPrecisionOf } from './weight.js'

const SCALE_BYTES = 8

/** Fills in the scales of all DoRA layers of a plan. */
export async function computeScales(
  files: readonly Pick<OutputFile, 'segments'>[],
  sources: readonly ByteSource[],
  magnitudes: readonly LayerMagnitude[],
  isReproducible: boolean,
): Promise<void> {
  if (magnitudes.length === 0) return
  const merger = new ChunkMerger(sources, isReproducible)
  const bySource = new Map(magnitudes.map((magnitude) => [magnitude.layer.scales!.source, magnitude]))
  for (const segment of files.flatMap(({ segments }) => segments)) {
    if (segment.weight === undefined) continue
    const scaled = windowsOf(segment.weight).filter(({ weight }) => weight.layers[0]?.scales !== undefined)
    if (scaled.length === 0) continue
    const weight = withoutScales(segment.weight)
    const sums = scaled.map(({ weight: { layers } }) => new Float64Array(layers[0].d))
    const chunks = new Chunks({ ...segment, weight })
    for (let i = 0; i < chunks.count; i++) {
      const chunk = chunks.at(i)
      const { bytes } = await merger.merge(chunk)
      const values = decodeWeights(bytes, weight.to)
      for (const [j, window] of scaled.entries()) {
        const { isInputMajor } = window.weight.layers[0]
        const [first, end] = [window.column, window.column + window.weight.columns]
        for (let at = 0; at < values.length; at++) {
          const column = chunk.column + (at % chunk.columns)
          if (column < first || column >= end) continue
          sums[j][isInputMajor ? column - first : chunk.row + Math.floor(at / chunk.columns)] += values[at] ** 2
        }
      }
    }
    for (const [j, { weight: own }] of scaled.entries()) {
      const { scales: place, d } = own.layers[0]
      const { magnitude, scales } = bySource.get(place!.source)!
      const first = place!.offset / SCALE_BYTES
      const { dtype, offset, source } = magnitude
      const bytes = await sources[source].read(offset + first * sizeOf(dtype), d * sizeOf(dtype))
      const values = inPrecisionOf(weight.from, decodeWeights(bytes, dtype))
      sums[j].forEach((square, output) => {
        scales[first + output] = values[output] / Math.sqrt(square)
      })
    }
  }
}

/** The weight with W + s·B·A, in the precision that it is computed in. */
function withoutScales(weight: WeightPlan): WeightPlan {
  const to = weight.from === 'fp64' ? 'fp64' : 'fp32'
  return {
    ...weight,
    to,
    isWidened: weight.from !== to,
    layers: weight.layers.map((layer) => ({ ...layer, scales: undefined })),
    windows: weight.windows?.map(({ column, weight: own }) => ({ column, weight: withoutScales(own) })),
  }
}
