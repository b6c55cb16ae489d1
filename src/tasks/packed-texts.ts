// Texts that share rows, and what keeps them apart in the graph.

import { RECORDS, separateRecords } from '../graph/training/separate-records.js'
import type { Feeds } from '../runtime/runtime.js'
import { PackedExamples } from '../text/packed-examples.js'

export class PackedTexts extends PackedExamples {
  readonly separate = separateRecords

  /** @param records which record each token is of, from 1 on */
  feeds(records: Int32Array, dims: readonly number[]): Feeds {
    return { [RECORDS]: { type: 'int32', data: records, dims } }
  }
}
