// DoRA layers as plain changes of their weight. DoRA's weight is m·(W + s·B·A)/‖W + s·B·A‖, a norm for each row (Liu et
// al. 2024, arXiv 2402.09353): its difference from W depends on W, and has any rank up to that of W.

import type { Place } from '../base/bytes.js'
import type { Matrix } from '../base/tensor.js'
import { copyAs } from '../linalg/product.js'
import type { PartOfKind } from '../lora/adapter.js'
import type { PartView } from '../lora/part.js'
import type { OpenAdapter } from '../peft/open.js'
import { openBaseWeights } from './to-plain.js'

export function isDora(part: PartView): boolean {
  return 'magnitude' in part.tensors && part.tensors.magnitude !== undefined
}

export interface DoraBase {
  /** W' − W (d, k) of a layer with a magnitude. */
  change(layer: PartOfKind<'linear'>): Promise<Matrix>
  close(): Promise<void>
}

export async function openDoraBase(base: Place, adapters: readonly OpenAdapter[]): Promise<DoraBase> {
  const layers = new Map(
    adapters.flatMap((adapter) =>
      adapter.parts().flatMap((part) => {
        if (part.kind !== 'linear' || !isDora(part)) return []
        const shape: [number, number] = [part.tensors.weightB.shape[0], part.tensors.weightA.shape[1]]
        return [[part.name, { name: part.name, shape }] as const]
      }),
    ),
  )
  const fanInFanOut = adapters.some((adapter) => adapter.config.fanInFanOut)
  const weights = await openBaseWeights(base, [...layers.values()], { fanInFanOut })
  return {
    async change(layer) {
      const weight = copyAs(await weights.read(layer.name), new Float64Array())
      layer.attachBase(weight)
      try {
        layer.merge()
        const { data, shape } = layer.baseWeight!
        const change = new Float32Array(data.length)
        for (let i = 0; i < data.length; i++) change[i] = data[i] - weight.data[i]
        return { data: change, shape }
      } finally {
        layer.dispose()
      }
    },
    close: weights.close,
  }
}
