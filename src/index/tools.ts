// The tools for adapters: checks of what callers hand over, and the way to the code that does the work.

import type { Directory } from '../base/bytes.js'
import {
  BOOLEAN,
  COUNT,
  checkArgument,
  checkOptions,
  FUNCTION,
  isObject,
  kind,
  listOf,
  numberKind,
  type OptionTable,
  oneOf,
  SIGNAL,
} from '../base/options.js'
import { LoraAdapter } from '../lora/adapter.js'
import type { CombineResult } from '../tools/combine.js'
import { COMBINATION_TYPES, type CombineSettings } from '../tools/combine-settings.js'
import type { ToolRun } from '../tools/progress.js'
import type { RankChoice } from '../tools/rank.js'
import type { ResizeResult } from '../tools/resize.js'
import { ADAPTER } from './adapters.js'
import { ADAPTER_TO_MERGE, type AdapterToMerge } from './merge-options.js'
import { openFolder, SOURCE, type Source } from './sources.js'

/** How {@link resize} chooses ranks. */
export interface ResizeOptions extends RankChoice, ToolRun {}

/** What {@link combine} takes. */
export interface CombineOptions extends CombineSettings {
  /** Adapters for one base, with their weights. Ranks and layers may differ. */
  adapters: readonly AdapterToMerge[]
}

const SHARE = numberKind('a number in (0, 1]', (value) => value > 0 && value <= 1)

export const RANK_CHOICE: OptionTable<RankChoice> = {
  rank: COUNT,
  energy: SHARE,
  error: numberKind('a number in [0, 1)', (value) => value >= 0 && value < 1),
  ratio: SHARE,
}

export const TOOL_RUN: OptionTable<ToolRun> = { onProgress: FUNCTION, signal: SIGNAL }

const RESIZE: OptionTable<ResizeOptions> = { ...RANK_CHOICE, ...TOOL_RUN }

const COMBINE: OptionTable<CombineOptions> = {
  ...RANK_CHOICE,
  ...TOOL_RUN,
  adapters: kind(`a list, each ${ADAPTER_TO_MERGE.expected}`, (value) => {
    return listOf(ADAPTER_TO_MERGE).accepts(value) && (value as unknown[]).length > 0
  }),
  combinationType: oneOf(...COMBINATION_TYPES),
  density: SHARE,
  majoritySignMethod: oneOf('total', 'frequency'),
  peftCompatible: BOOLEAN,
}

/** An adapter in memory, or the folder of a source. */
export async function adapterOrFolder(adapter: Source | LoraAdapter, where: string): Promise<LoraAdapter | Directory> {
  if (adapter instanceof LoraAdapter) return adapter
  checkArgument(
    adapter,
    kind(`a LoraAdapter, ${SOURCE.expected}`, (value) => SOURCE.accepts(value)),
    where,
  )
  return openFolder(adapter, where)
}

/** See the entry. */
export async function resize(adapter: Source | LoraAdapter, options: ResizeOptions): Promise<ResizeResult> {
  checkOptions(options, { of: 'resize', table: RESIZE })
  const { checkRankChoice } = await import('../tools/rank.js')
  checkRankChoice(options ?? {})
  const { resizeAdapter } = await import('../tools/resize.js')
  return resizeAdapter(await adapterOrFolder(adapter, 'adapter'), options)
}

/** See the entry. */
export async function combine(options: CombineOptions): Promise<CombineResult> {
  checkOptions(options, { of: 'combine', table: COMBINE, required: ['adapters'] })
  const { adapters, ...settings } = options
  const { combineAdapters } = await import('../tools/combine.js')
  const inputs = []
  for (const given of adapters) {
    const { adapter, weight = 1 } = isWeighted(given) ? given : { adapter: given }
    inputs.push({ adapter: await adapterOrFolder(adapter, 'adapters'), weight })
  }
  return combineAdapters(inputs, settings)
}

function isWeighted(
  given: AdapterToMerge,
): given is { readonly adapter: LoraAdapter | Source; readonly weight?: number } {
  return isObject(given) && 'adapter' in given && !ADAPTER.accepts(given)
}
