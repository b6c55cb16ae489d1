// Cells that lowrank refuses and PEFT does not, with the reason and the text of the error. docs/conformance.md lists
// them.

import type { Cell } from './golden.js'

export interface Refusal {
  /** Returns whether lowrank refuses this cell of the option. */
  where(cell: Cell): boolean
  message: RegExp
  /** One sentence for the table. */
  reason: string
}

/** Refusals by option. */
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
