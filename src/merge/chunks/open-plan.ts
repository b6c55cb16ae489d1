// Opens base and adapters and plans a merge into a checkpoint: headers and config.json are read, nothing is written. What follows
// from the plan alone, such as the new config.json, is made here, so that it cannot fail once weights are written.

import { type Directory, readAll } from '../../base/bytes.js'
import { FormatError, MismatchError } from '../../base/errors.js'
import { type Checkpoint, openCheckpoint } from '../../formats/checkpoint.js'
import { type OpenAdapters, openAdapters, requireFiniteReplacements } from '../plan/adapters.js'
import { knowBase } from '../plan/base-model.js'
import { CONFIG_FILE, editConfig, headWarning, otherDtype } from '../plan/config-edit.js'
import { type MergePlan, type PlanOptions, planMerge } from '../plan/plan.js'
import type { MergePlanReport } from '../report.js'
import type { AdapterInput } from '../weighted.js'
import { resultTemplate } from './chat-template.js'
import { type Companions, findCompanions, NO_COMPANIONS } from './companions.js'
import { computeScales } from './dora-scales.js'

/** What opening and planning take. */
export interface OpenPlanOptions extends PlanOptions {
  /** The base's safetensors file, or its index, in its folder. Default: found there. */
  basePath?: string | undefined
  /** The base's other files stay behind. Default false. */
  weightsOnly?: boolean | undefined
  /** Folders that the result has of its own, such as `onnx/`. */
  ownFolders?: readonly string[] | undefined
  /** Refuses adapters whose config has targets or patterns that match nothing of them. Default false. */
  strict?: boolean | undefined
}

/** A plan with the files that it reads. */
export interface OpenPlan {
  readonly plan: MergePlan
  readonly checkpoint: Checkpoint
  readonly adapters: OpenAdapters
  readonly companions: Companions
  /** The result's config.json, where it is another than the base's. */
  readonly config: string | undefined
  readonly warnings: string[]
  close(): Promise<void>
}

/** The content of config.json. */
export interface Config {
  readonly bytes: Uint8Array
  readonly values: Readonly<Record<string, unknown>>
}

/**
 * Opens base and adapters and plans the merge.
 *
 * @param sign −1 to unmerge
 * @throws what openCheckpoint, openAdapters and planMerge throw
 */
export async function openPlan(
  base: Directory,
  adapters: AdapterInput | readonly AdapterInput[],
  options: OpenPlanOptions,
  sign: 1 | -1 = 1,
): Promise<OpenPlan> {
  const { basePath, weightsOnly = false, ownFolders = [] } = options
  const checkpoint = await openCheckpoint(base, basePath)
  let opened: OpenAdapters | undefined
  const close = async () => {
    await opened?.close()
    await checkpoint.close()
  }
  try {
    opened = await openAdapters(isList(adapters) ? adapters : [adapters], sign, options)
    const config = await loadConfig(base)
    const plan = planMerge(await knowBase(checkpoint, config?.values, opened), opened, options)
    const warnings = configWarnings(plan, config?.values, { weightsOnly, where: base.name })
    await requireFiniteReplacements(opened)
    await computeScales(plan, checkpoint, opened)
    const isUnmerge = sign === -1
    const chat = await resultTemplate(weightsOnly || isUnmerge ? undefined : base, adapters)
    warnings.push(...chat.warnings)
    const own = [
      ...checkpoint.shards.map(({ path }) => path),
      ...(checkpoint.indexPath === undefined ? [] : [checkpoint.indexPath]),
      ...ownFolders,
    ]
    return {
      plan,
      checkpoint,
      adapters: opened,
      companions: weightsOnly ? NO_COMPANIONS : await findCompanions(base, new Set(own), chat.template),
      config: plan.configEdit && config && editConfig(config.bytes, plan.configEdit, `${base.name}/${CONFIG_FILE}`),
      warnings,
      close,
    }
  } catch (error) {
    await close()
    throw error
  }
}

/**
 * What a merge changes in config.json where the result gets none.
 *
 * @throws MismatchError for untied embeddings, which loaders would tie again
 */
function configWarnings(
  { configEdit }: MergePlan,
  config: Readonly<Record<string, unknown>> | undefined,
  { weightsOnly, where }: { weightsOnly: boolean; where: string },
): string[] {
  if (configEdit === undefined || (!weightsOnly && config !== undefined)) return []
  if (configEdit.untied.length > 0) {
    throw new MismatchError({
      where,
      what: `embeddings cannot be untied without a ${CONFIG_FILE}, which must say so`,
      ...(weightsOnly && { got: 'a result without one' }),
      hint: weightsOnly ? 'Keep them tied, or write a whole folder' : 'Keep them tied, or add the file',
    })
  }
  const { dtype, head } = configEdit
  const other = dtype && config && otherDtype(config, dtype)
  const asides = head === undefined ? [] : [headWarning(head)]
  if (other === undefined) return asides
  return [
    ...asides,
    `The result is in ${dtype}, and the base's ${CONFIG_FILE}, which does not go along, says ${other}: ` +
      'change it in the copy that the result is used with',
  ]
}

/** What a report says of the plan itself. */
export function describePlan(plan: MergePlan, sums: { relativeChange(weight: string): number | null }) {
  return {
    tensors: plan.tensors.size,
    changed: plan.changed.size,
    added: [...plan.added],
    renamed: [...plan.renamed],
    layers: plan.weights.map(({ name }) => ({ name: moduleOf(name), relativeChange: sums.relativeChange(name) })),
  }
}

/** What a plan says before anything is computed. */
export function reportPlan({ plan, companions, warnings }: OpenPlan): Omit<MergePlanReport, 'out' | 'format'> {
  return {
    tensors: plan.tensors.size,
    changed: plan.changed.size,
    added: [...plan.added],
    renamed: [...plan.renamed],
    bytes: plan.bytes,
    files: plan.shards.map(({ path: name, byteLength }) => ({ name, byteLength })),
    layers: plan.weights.map(({ name, layers }) => ({
      name: moduleOf(name),
      adapters: layers.map(({ name: module, rank, scale }) => ({ module, rank, scale })),
    })),
    copied: [...companions.copied],
    leftOut: [...companions.leftOut],
    warnings,
  }
}

function moduleOf(tensor: string): string {
  return tensor.replace(/\.weight$/, '')
}

/** The values of config.json, where there is one. Throws FormatError when it is no JSON object. */
export async function readConfig(base: Directory): Promise<Readonly<Record<string, unknown>> | undefined> {
  return (await loadConfig(base))?.values
}

/** The content of config.json, where there is one. Throws FormatError when it is no JSON object. */
export async function loadConfig(base: Directory): Promise<Config | undefined> {
  if (!(await base.has(CONFIG_FILE))) return undefined
  const source = await base.open(CONFIG_FILE)
  try {
    const bytes = await readAll(source)
    const values: unknown = JSON.parse(new TextDecoder().decode(bytes))
    if (typeof values === 'object' && values !== null && !Array.isArray(values))
      return { bytes, values: values as Record<string, unknown> }
    throw new FormatError({ where: source.name, what: 'not a JSON object' })
  } catch (cause) {
    if (!(cause instanceof SyntaxError)) throw cause
    throw new FormatError({ where: source.name, what: `not valid JSON (${cause.message})`, cause })
  } finally {
    await source.close()
  }
}

function isList<T>(value: T | readonly T[]): value is readonly T[] {
  return Array.isArray(value)
}
