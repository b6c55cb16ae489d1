// How an adapter fits a checkpoint: the checks of a merge's plan, part by part, each problem noted instead of thrown.

import type { Directory } from '../base/bytes.js'
import { attempt, UnsupportedError } from '../base/errors.js'
import { type Checkpoint, openCheckpoint, shardSource } from '../formats/checkpoint.js'
import { isHeadModule } from '../peft/tied.js'
import { type FitReport, fitReport, normOf, type PartFit, partFit } from './fit.js'
import { type BaseReplacement, type MergeParts, openAdapters } from './plan/adapters.js'
import { type BaseModel, knowBase } from './plan/base-model.js'
import { readConfig } from './plan/config-edit.js'
import { findWeights, labelOf, missingError, type WeightSearch } from './plan/find-weights.js'
import { groupOf } from './plan/names/ties.js'
import { isEmbeddingModule } from './plan/names/vocabulary.js'
import { placeReplacements } from './plan/place-replacements.js'
import { planMerge } from './plan/plan.js'
import { refuseQuantizedConfig } from './plan/refusals.js'
import { resizedBase } from './plan/resized.js'
import { partedTies } from './plan/tied.js'

/** Near misses are looked for this often: each costs a comparison with every name of the base. */
const MAX_SUGGESTIONS = 20

/** Options of a look at a fit. */
interface FitOptions {
  /** The checkpoint's file or index in its folder. Default: found there. */
  basePath?: string | undefined
  /** ‖s·B·A‖ by layer: then the weights are read, and each part has its relative change. */
  normDeltas?: ReadonlyMap<string, number> | undefined
}

/**
 * Compares an adapter with a checkpoint. The report lists what does not fit. Problems of the adapter itself are passed
 * over.
 *
 * @throws FileError or FormatError when base or adapter cannot be read
 */
export async function fitCheckpoint(
  base: Directory,
  adapter: Directory,
  { basePath, normDeltas }: FitOptions = {},
): Promise<FitReport> {
  const checkpoint = await openCheckpoint(base, basePath)
  try {
    const config = await readConfig(base)
    const name = `${base.name}/${basePath ?? checkpoint.indexPath ?? checkpoint.shards[0].path}`
    const whole = { base: name, kind: 'checkpoint', ...vocabularyOf(checkpoint, config) } as const
    const opened = await openAdapters([adapter], 1, { isTolerant: true }).catch((error: unknown) => {
      if (error instanceof UnsupportedError) return error
      throw error
    })
    if (opened instanceof UnsupportedError) {
      return fitReport({ ...whole, parts: [], problems: [opened.message], notes: [] })
    }
    try {
      const { parts, ...report } = judge(await knowBase(checkpoint, config, opened), opened)
      if (normDeltas !== undefined) await addRelativeChanges(parts, checkpoint, normDeltas)
      return fitReport({ ...whole, parts, ...report })
    } finally {
      await opened.close()
    }
  } finally {
    await checkpoint.close()
  }
}

type Config = Readonly<Record<string, unknown>> | undefined

function judge(original: BaseModel, adapter: MergeParts) {
  const { base } = attempt(() => resizedBase(original, adapter.replacements)).value ?? { base: original }
  const { checkpoint, config, names, ties, head } = base
  const { layers, replacements } = adapter
  const problems: string[] = []
  const note = (work: () => unknown) => problems.push(...attempt(work).problems.map(({ message }) => message))
  note(() => refuseQuantizedConfig(config, `${checkpoint.directory.name}/config.json`))
  const parts = [
    ...judgeLayers({ layers, names, checkpoint, ties, config }),
    ...replacements.map((replacement) => judgeReplacement(replacement, base)),
  ]
  const [parted] = partedTies(adapter, base)
  const added = replacements.filter(({ tensor }) => isOfHead(tensor, base)).map(({ tensor }) => tensor)
  // Some problems only show in the whole. Two changes that are no sum have a place each where tied embeddings are
  // untied.
  if (problems.length === 0 && parts.every(({ problem }) => problem === null)) {
    const tied = parted === undefined ? 'refuse' : 'untie'
    note(() => planMerge(original, adapter, { tied }))
  }
  const notes = [
    ...(parted === undefined
      ? []
      : [`it changes tied embeddings, ${parted.group.members.join(' and ')}: a merge has to untie or keep them`]),
    ...(added.length === 0
      ? []
      : [`it brings the head of a ${head!.architecture}, which the base has not: ${added.join(', ')}`]),
  ]
  return { parts, problems, notes }
}

/** True if a tensor is one of a head that the base has not. */
function isOfHead(tensor: string, { checkpoint, names, ties, head }: BaseModel): boolean {
  const name = names.locate(tensor)
  const isStored = checkpoint.tensors.has(name) || groupOf(ties, name) !== undefined
  return !isStored && head?.tensors.includes(tensor) === true
}

function judgeLayers(search: WeightSearch): PartFit[] {
  const { layers, names, checkpoint } = search
  const { tensors } = checkpoint
  let suggestions = 0
  return layers.flatMap((layer): PartFit[] => {
    const { value: found, problems } = attempt(() => findWeights(layer, search))
    let problem = problems[0]?.message ?? null
    // Experts of a parameter that are stored one by one have a line each.
    const label = (tensor: string) => (found !== undefined && found.length > 1 ? tensor : labelOf(layer))
    if (found !== undefined) return found.map(({ name, tensor }) => partFit(label(name), tensor.info, problem))
    const unfit = tensors.get(`${names.locate(layer.name)}.${layer.tensor}`)
    if (unfit === undefined) {
      const isSuggested = ++suggestions <= MAX_SUGGESTIONS
      problem ??= missingError([layer], layers, isSuggested ? tensors : new Map()).message
    }
    return [partFit(labelOf(layer), unfit?.info, problem)]
  })
}

function judgeReplacement(replacement: BaseReplacement, base: BaseModel): PartFit {
  const { tensor, info: own } = replacement
  const { checkpoint, names, ties } = base
  const problem = attempt(() => placeReplacements([replacement], { base, untied: [] })).problems[0]?.message ?? null
  const name = names.form(tensor)?.tensors[0].replace('*', '0') ?? tensor
  const info = checkpoint.tensors.get(name)?.info ?? checkpoint.tensors.get(groupOf(ties, name)?.stored ?? '')?.info
  return partFit(tensor, info ?? (problem === null ? { ...own, name } : undefined), problem)
}

function vocabularyOf({ tensors }: Checkpoint, config: Config) {
  const modules = [...tensors.keys()].flatMap((name) => (name.endsWith('.weight') ? name.slice(0, -7) : []))
  const embedding = modules.find(isEmbeddingModule)
  const vocabulary = embedding === undefined ? null : (tensors.get(`${embedding}.weight`)!.info.shape[0] ?? null)
  const said = config?.tie_word_embeddings
  const isTied = typeof said === 'boolean' ? said : embedding === undefined ? null : !modules.some(isHeadModule)
  return { vocabulary, isTied }
}

async function addRelativeChanges(
  parts: PartFit[],
  checkpoint: Checkpoint,
  normDeltas: ReadonlyMap<string, number>,
): Promise<void> {
  for (const part of parts) {
    const normDelta = part.tensor?.endsWith('.bias') ? undefined : normDeltas.get(part.name)
    const tensor = part.tensor === null ? undefined : checkpoint.tensors.get(part.tensor)
    if (normDelta === undefined || tensor === undefined || part.problem !== null) continue
    const base = await normOf(shardSource(checkpoint, tensor.shard), tensor.info, { isInputMajor: false })
    if (base > 0) part.relativeChange = normDelta / base
  }
}
