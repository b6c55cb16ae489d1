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
    // The plan's layers are the adapter's, or copies that know how a tensor stores it, or some of its rows.
    const isOwn = ({ scales }: LayerFactors) => scales?.source === magnitude.layer.scales!.source
    for (const segment of segments) {
      const layer = segment.weight?.layers.find(isOwn)
      if (layer === undefined) continue
      const source = segmentSource(checkpoint, adapters.sources, segment.shard)
      await fillScales({ ...magnitude, layer }, segment, source, adapters.sources)
    }
  }
}

async function fillScales(
  { layer, magnitude, scales }: LayerMagnitude,
  { baseOffset, weight }: Segment,
  source: ByteSource,
  sources: readonly ByteSource[],
): Promise<void> {
  const { rows, columns, from } = weight!
  const { scale, isInputMajor, b, d } = layer
  const first = b.slice?.firstRow ?? 0
  const ownB = { ...b, offset: b.offset + first * b.columns * sizeOf(b.dtype), rows: d }
  const factors = { weightA: await valuesOf(layer.a, sources, from), weightB: await valuesOf(ownB, sources, from) }
  const delta = new StoredDelta(factors, scale, isInputMajor, factors.weightA.data)
  const norms = new OutputNorms(d)
  const blockRows = Math.max(1, Math.floor(BLOCK_ELEMENTS / columns))
  for (let row = 0; row < rows; row += blockRows) {
    const m = Math.min(blockRows, rows - row)
    const rowBytes = columns * sizeOf(from)
    const data = decodeWeights(await source.read(baseOffset + row * rowBytes, m * rowBytes), from)
    norms.add(delta.addTo({ data, shape: [m, columns] }, row), row, isInputMajor)
  }
  const offset = magnitude.offset + first * sizeOf(magnitude.dtype)
  const ownMagnitude = { ...magnitude, offset, rows: 1, columns: d }
  scales.set(norms.scales((await valuesOf(ownMagnitude, sources, from)).data), first)
}

/** As f64 for a base in fp64, else as f32. */
async function valuesOf(
  { source, offset, rows, columns, dtype }: Factor,
  sources: readonly ByteSource[],
  base: WeightDtype,
): Promise<Matrix> {
  const values = decodeWeights(await sources[source].read(offset, rows * columns * sizeOf(dtype)), dtype)
  return { data: inPrecisionOf(base, values), shape: [rows, columns] }
}
