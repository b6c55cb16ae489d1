// What can be done with a linear layer, by its form.

import { TensorProto_DataType as DataType } from '../../../formats/onnx/gen/onnx_pb.js'
import { FLOAT_DTYPES } from './float-product.js'
import type { Product } from './form.js'
import { MATMUL_NBITS } from './matmul-nbits.js'

/** Ways of merging into a layer: into its weight, as a branch beside it, or into its weight in its own integers. */
export type MergeWay = 'weights' | 'branches' | 'requantize'

/** What can be done with a layer. */
export interface Abilities {
  /** Sessions run it with adapters. */
  readonly run: boolean
  /** The default first; empty if it cannot be merged. */
  readonly merge: readonly MergeWay[]
  /** Adapters are trained on it. */
  readonly train: boolean
  /** What of its layout lowrank does not understand. */
  readonly problem: string | undefined
}

/** What can be done with a layer of this form and layout. */
export function abilitiesOf({ form, dataType, problem }: Product): Abilities {
  const run = FLOAT_DTYPES[dataType] !== undefined && form.closedHint === undefined
  const isReadable = problem === undefined
  const quantized: MergeWay[] = form === MATMUL_NBITS && isReadable ? ['branches', 'requantize'] : ['branches']
  return {
    run,
    merge: !run ? [] : form.isQuantized ? quantized : isReadable ? ['weights'] : [],
    train:
      [DataType.FLOAT, DataType.FLOAT16].includes(dataType) &&
      isReadable &&
      (!form.isQuantized || form.dequantize !== undefined),
    problem,
  }
}
