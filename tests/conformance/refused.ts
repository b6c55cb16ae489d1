// Cells that lowrank refuses and PEFT does not: the reason, and what the error must say. Each is in the table of
// docs/conformance.md.

import type { Cell } from './golden.js'

export interface Refusal {
  /** Which cells of the option. */
  where(cell: Cell): boolean
  message: RegExp
  /** One sentence for the table. */
  reason: string
}

/** By option. */
export const LOWRANK_REFUSES: Readonly<Record<string, Refusal>> = {
  bin: {
    where: () => true,
    message: /adapter_model\.bin: a pickle.*torch\.load/,
    reason: 'A pickle can run code when it is opened. The error has the line of Python that converts it.',
  },
  'layer-replication': {
    where: () => true,
    message: /layer_replication: a setting that changes what the weights mean/,
    reason:
      'The copies of a layer share one weight, so that no weight has the changes of all. Next to no adapter has it.',
  },
}
