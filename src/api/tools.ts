// The tools for adapters: checks the arguments, opens the sources, and loads the code that does the work.

import type { Place, Source, Target } from '../core/base/bytes.js'
import { checkArgument, checkOptions } from '../core/base/options.js'
import type { ToolRun } from '../core/base/progress.js'
import { isDirectory } from '../files/data/row.js'
import { LoraAdapter } from '../lora/adapter.js'
import type { ConvertReport } from '../merge/exchange/convert.js'
import type { ConvertedDtype } from '../merge/exchange/exchange-format.js'
import { type AdapterFormat, formatOf } from '../merge/exchange/formats.js'
import type { CombineResult, CombineSettings } from '../merge/tools/combine.js'
import type { DiffReport } from '../merge/tools/diff.js'
import type { RankChoice } from '../merge/tools/rank.js'
import type { ResizeResult } from '../merge/tools/resize.js'
import { ADAPTER_SOURCE } from '../model/source-values.js'
import { weightedAdapter } from './adapters.js'
import { COMBINE_OPTIONS, CONVERT_ADAPTER_OPTIONS, DIFF_OPTIONS, RESIZE_OPTIONS } from './gen/options.js'
import type { AdapterToMerge } from './merge-options.js'
import { adapterOrFolder, openSource, openTarget } from './sources.js'

/** How {@link resize} chooses ranks. */
export interface ResizeOptions extends RankChoice, ToolRun {}

/** Options of {@link combine}. */
export interface CombineOptions extends CombineSettings {
  /** Adapters for one base, with their weights. Ranks and layers may differ. */
  adapters: readonly AdapterToMerge[]
}

export async function resize(adapter: Source | LoraAdapter, options: ResizeOptions): Promise<ResizeResult> {
  checkOptions(options, 'resize', RESIZE_OPTIONS)
  const { checkRankChoice } = await import('../merge/tools/rank.js')
  checkRankChoice(options ?? {})
  const { resizeAdapter } = await import('../merge/tools/resize.js')
  return resizeAdapter(await adapterOrFolder(adapter, 'adapter'), options)
}

export async function combine(options: CombineOptions): Promise<CombineResult> {
  checkOptions(options, 'combine', COMBINE_OPTIONS)
  const { adapters, ...settings } = options
  const { combineAdapters } = await import('../merge/tools/combine.js')
  const inputs = []
  for (const given of adapters) inputs.push({ weight: 1, ...(await weightedAdapter(given)) })
  return combineAdapters(inputs, settings)
}

/** How {@link diff} runs. */
export interface DiffOptions extends ToolRun {}

export async function diff(
  a: Source | LoraAdapter,
  b: Source | LoraAdapter,
  options: DiffOptions = {},
): Promise<DiffReport> {
  checkOptions(options, 'diff', DIFF_OPTIONS)
  const [first, second] = [await adapterOrFolder(a, 'a'), await adapterOrFolder(b, 'b')]
  return (await import('../merge/tools/diff.js')).diffAdapters(first, second, options)
}

/** Options of {@link convertAdapter}. */
export interface ConvertAdapterOptions extends ToolRun {
  /** The format of the result: `peft`, `gguf` or `mlx`. */
  to: AdapterFormat
  /** The place of the result: a folder. For `gguf`, it can also be a file. */
  out: Target
  /** The model of the adapter: a folder with config.json. GGUF needs it. */
  base?: Source | undefined
  /** The type of the factors in the result. Default `keep`: each layer keeps its type. Only GGUF can have `q8_0`. */
  outDtype?: ConvertedDtype | undefined
}

export async function convertAdapter(
  adapter: Source | LoraAdapter,
  options: ConvertAdapterOptions,
): Promise<ConvertReport> {
  checkOptions(options, 'convertAdapter', CONVERT_ADAPTER_OPTIONS)
  const { to, out, base, outDtype = 'keep', ...run } = options
  if (!(adapter instanceof LoraAdapter)) checkArgument(adapter, ADAPTER_SOURCE, 'adapter')
  const { convert } = await import('../merge/exchange/convert.js')
  return convert(adapter instanceof LoraAdapter ? adapter : await openSource(adapter, 'adapter'), {
    to,
    out: placeOf(out, to),
    base: base === undefined ? undefined : await openSource(base, 'base', { readsRanges: true }),
    dtype: outDtype,
    ...run,
  })
}

/** Decides whether `out` is a file or a folder: a path with the extension of the format is a file. */
function placeOf(out: Target, to: AdapterFormat): Place {
  const { ending } = formatOf(to)
  const isFile = !isDirectory(out) && ending !== undefined && out.toLowerCase().endsWith(ending)
  if (!isFile) return { directory: openTarget(out, 'out'), file: undefined }
  const [, folder = '', file] = /^(.*[\\/])?([^\\/]+)$/s.exec(out) ?? []
  return { directory: openTarget(folder.length > 1 ? folder.slice(0, -1) : folder || '.', 'out'), file }
}
