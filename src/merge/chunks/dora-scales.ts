// The scales of DoRA layers, m / ‖W + s·B·A‖ by output (Liu et al. 2024, arXiv 2402.09353): one pass over each such weight before
// the merge, because a norm needs the whole row, and a weight stored (k, d) is read across its rows.

import type { ByteSource } from '../../base/bytes.js'
import { decodeWeights, type WeightDtype } from '../../base/dtype.js'
import type { Matrix } from '../../base/tensor.js'
import { type Checkpoint, shardSource } from '../../formats/checkpoint.js'
import { StoredDelta } from '../../lora/delta.js'
import { OutputNorms } from '../../lora/dora.js'
import type { Factor, LayerFactors, LayerMagnitude, OpenAdapters } from '../plan/adapters.js'
import { type Segment, sizeOf } from '../plan/layout.js'
import type { MergePlan } from '../plan/plan.js'
import { inPrecisionOf } from './chunk-merger.js'

/** Weights pass in blocks of at most so many elements: 4 MiB in f32. */
const BLOCK_ELEMENTS = 1 << 20

/** Where a segment's bytes are: a shard of the base, or, counted on from them, a source of the adapters. */
export function segmentSource(checkpoint: Checkpoint, sources: readonly ByteSource[], shard: number): ByteSource {
  const own = shard - checkpoint.shards.length
  return own < 0 ? shardSource(checkpoint, shard) : sources[own]
}

/** Fills in the scales of all DoRA layers of a plan. */
export async function computeScales(plan: MergePlan, checkpoint: Checkpoint, adapters: OpenAdapters): Promise<void> {
  const segments = plan.shards.flatMap((shard) => shard.segments)
  for (const magnitude of adapters.magnitudes) {
    // The plan's layer is the adapter's, or a copy that knows how its tensor is stored.
    const isOwn = ({ a }: LayerFactors) => a === magnitude.layer.a
    const segment = segments.find(({ weight }) => weight?.layers.some(isOwn))
    const layer = segment?.weight?.layers.find(isOwn)
    if (segment === undefined || layer === undefined) continue
    await fillScales(
      { ...magnitude, layer },
      segment,
      segmentSource(checkpoint, adapters.sources, segment.shard),
      adapters.sources,
    )
  }
}

async function fillScales(
  { layer, magnitude, scales }: LayerMagnitude,
  { baseOffset, weight }: Segment,
  source: ByteSource,
  sources: readonly ByteSource[],
): Promise<void> {
  const { rows, columns, from } = weight!
  const { scale, isInputMajor } = layer
  const factors = { weightA: await valuesOf(layer.a, sources, from), weightB: await valuesOf(layer.b, sources, from) }
  const delta = new StoredDelta(factors, scale, isInputMajor, factors.weightA.data)
  const norms = new OutputNorms(layer.d)
  const blockRows = Math.max(1, Math.floor(BLOCK_ELEMENTS / columns))
  for (let row = 0; row < rows; row += blockRows) {
    const m = Math.min(blockRows, rows - row)
    const rowBytes = columns * sizeOf(from)
    const data = decodeWeights(await source.read(baseOffset + row * rowBytes, m * rowBytes), from)
    norms.add(delta.addTo({ data, shape: [m, columns] }, row), row, isInputMajor)
  }
  scales.set(norms.scales((await valuesOf(magnitude, sources, from)).data))
}

/** As f64 for a base in F64, else as f32. */
async function valuesOf(
  { source, offset, rows, columns, dtype }: Factor,
  sources: readonly ByteSource[],
  base: WeightDtype,
): Promise<Matrix> {
  const values = decodeWeights(await sources[source].read(offset, rows * columns * sizeOf(dtype)), dtype)
  return { data: inPrecisionOf(base, values), shape: [rows, columns] }
}
