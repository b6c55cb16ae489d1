// The interface of a format in which adapters are written. Each format is one such object.

import type { Place } from '../../core/base/bytes.js'
import type { FloatDtype } from '../../core/base/dtype.js'
import { UnsupportedError } from '../../core/base/errors.js'
import type { ToolRun } from '../../core/base/progress.js'
import type { OpenAdapter } from '../../lora/peft/open.js'
import { type Handled, requireUnchangedBase, unhandledPart } from '../../lora/requirements.js'

/** The types in which factors can be written. Only GGUF has `q8_0`. */
export type ConvertedDtype = FloatDtype | 'q8_0' | 'keep'

export interface WriteSettings extends ToolRun {
  readonly dtype: ConvertedDtype
  readonly base: Place | undefined
}

export function floatDtype(wanted: ConvertedDtype, stored: FloatDtype): FloatDtype {
  return wanted === 'keep' || wanted === 'q8_0' ? stored : wanted
}

export interface Written {
  /** Layers, or tensors of the base, that the result changes. */
  readonly layers: number
  /** Notes on how tensors or settings had to be changed for the format, without changing the adapter's effect. */
  readonly notes?: string[]
}

export interface ExchangeFormat {
  /** Writes the adapter. If the format is a single file, `target` names that file. Throws UnsupportedError. */
  write(adapter: OpenAdapter, target: Place, settings: WriteSettings): Promise<Written>
}

/**
 * Throws for a part that the format cannot hold, and says what to do. `format` is a phrase such as `a GGUF adapter`.
 */
export function requireHeld(adapter: OpenAdapter, held: readonly Handled[], format: string): void {
  requireUnchangedBase(adapter, format)
  const unhandled = unhandledPart(adapter, held)
  if (unhandled === undefined) return
  throw new UnsupportedError({
    where: unhandled.name,
    what: `${format} cannot hold ${unhandled.meaning}`,
    expected: unhandled.expected,
    hint: 'Merge the adapter into its base, and convert the merged model',
  })
}
