// Opens the base and the adapters, and plans the merge. Nothing is written, and no weight is computed.

import { type ByteSource, closingOnError, type Directory } from '../core/base/bytes.js'
import type { OnnxModel } from '../onnx/format/model.js'
import type { ResultFile } from './base-files.js'
import type { ChosenFormat } from './choose-format.js'
import type { MergeFormat, MergePlanReport, MergeSummary } from './merge-report.js'
import type { BasePlan, MergeInput, OpenBase, PlanInput } from './parts.js'
import { type OpenAdapters, openAdapters, requireFiniteReplacements } from './plan/adapters.js'
import { type Config, editConfig, loadConfig, withoutConfig } from './plan/config-edit.js'
import { FitProblems } from './plan/fit-problems.js'
import type { OutputFile } from './plan/layout.js'
import { resultFiles } from './result-files.js'
import { computeScales } from './weight.js'
import { weighted } from './weighted.js'

interface OpenPlan {
  readonly input: PlanInput
  /** The name of the base in reports. */
  readonly where: string
  readonly opened: OpenAdapters
  readonly config: Config | undefined
  readonly fit: FitProblems
  /** Undefined if something does not fit, or if only the fit was asked for. */
  readonly plan: BasePlan | undefined
  close(): Promise<void>
}

/** Finds the places of all parts of the adapters. Graphs that the caller opened (`models`) stay open. */
export async function openPlan(
  input: MergeInput,
  chosen: ChosenFormat,
  { models, onlyFits }: { models?: readonly OnnxModel[]; onlyFits?: boolean } = {},
): Promise<OpenPlan> {
  const closers: (() => Promise<void>)[] = []
  const close = async () => {
    for (const closeOne of closers.splice(0)) await closeOne()
  }
  return closingOnError({ close }, async () => {
    const adapters = [input.adapters].flat().map(weighted)
    const state = { chosen, adapters, sign: input.sign ?? 1, sources: [], closers }
    // A GGUF file holds its own configuration and tokenizer.
    const weightsOnly = input.weightsOnly || chosen.format === 'gguf'
    const planned: PlanInput = { ...input, ...state, weightsOnly }
    const base = await openBase(planned, models)
    const { sign, sources } = planned
    const opened = await openAdapters(adapters, sign, { isTolerant: onlyFits }, sources)
    closers.push(() => opened.close())
    const config = await loadConfig(input.base.directory)
    const fit = new FitProblems(onlyFits)
    fit.add(...opened.problems)
    const plan = await base.plan(opened, config, fit)
    return { input: planned, where: base.where, opened, config, fit, plan, close }
  })
}

async function openBase(input: PlanInput, models?: readonly OnnxModel[]): Promise<OpenBase> {
  const { format } = input.chosen
  if (format === 'onnx') return (await import('./onnx/open.js')).openGraphs(input, models)
  if (format === 'gguf') return (await import('./gguf/open.js')).openGgufBase(input)
  return (await import('./open-checkpoint.js')).openCheckpointBase(input)
}

/** A planned merge. Its files and sources are open. */
export interface OpenMerge {
  readonly files: readonly OutputFile[]
  /** The other files of the result, such as config.json. */
  readonly others: readonly ResultFile[]
  readonly summary: Omit<MergeSummary, 'out' | 'format'>
  readonly layers: BasePlan['layers']
  readonly format: MergeFormat
  readonly base: Directory
  readonly sources: readonly ByteSource[]
  /** Computes the norms of DoRA layers, which need whole weights. */
  prepare(): Promise<void>
  close(): Promise<void>
}

export async function openMerge(
  input: MergeInput,
  chosen: ChosenFormat,
  models?: readonly OnnxModel[],
): Promise<OpenMerge> {
  return closingOnError(await openPlan(input, chosen, { models }), (open) => finished(open))
}

async function finished({ input, opened, config, fit, plan, close }: OpenPlan): Promise<OpenMerge> {
  if (plan === undefined) throw fit.problems[0]
  const { base, chosen, sources, weightsOnly = false } = input
  const { files, index, edit } = plan
  await requireFiniteReplacements(opened)
  const hasConfig = config !== undefined && !weightsOnly
  const configWarnings = hasConfig ? [] : withoutConfig(edit, weightsOnly, base.directory.name)
  const text = hasConfig ? editConfig(config, edit) : undefined
  const changed = text === config?.text ? undefined : text
  const { files: others, leftOut, warnings } = await resultFiles(input, plan.replaced, changed, plan.vocabulary)
  const copied = others.map(({ path }) => path)
  const summary = {
    ...plan.summary,
    tensors: files.reduce((sum, { tensors }) => sum + tensors.length, 0),
    changed: files.reduce((sum, { changed }) => sum + changed.length, 0),
    copied,
    leftOut,
    warnings: [...plan.warnings, ...configWarnings, ...warnings],
  }
  return {
    files,
    others: index === undefined ? others : [...others, index],
    summary,
    layers: plan.layers,
    format: chosen.format,
    base: base.directory,
    sources,
    prepare: () => computeScales(files, sources, opened.magnitudes),
    close,
  }
}

export function sizeOf(files: readonly { readonly byteLength: number }[]): number {
  return files.reduce((sum, { byteLength }) => sum + byteLength, 0)
}

export function reportPlan(merge: OpenMerge, out: string): MergePlanReport {
  const { format, files, layers, summary } = merge
  return {
    ...summary,
    out,
    format,
    bytes: sizeOf(files),
    files: files.map(({ path: name, byteLength }) => ({ name, byteLength })),
    layers: [...layers],
  }
}
