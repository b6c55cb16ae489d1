// How an adapter fits a checkpoint: the checks of a merge's plan, part by part, each problem noted instead of thrown.

import type { ByteSource, Directory } from '../../base/bytes.js'
import { decodeWeights, isWeightDtype } from '../../base/dtype.js'
import { attempt, UnsupportedError } from '../../base/errors.js'
import { type Checkpoint, openCheckpoint, shardSource } from '../../formats/checkpoint.js'
import type { TensorInfo } from '../../formats/safetensors.js'
import { isHeadModule } from '../../peft/tied.js'
import { readConfig } from '../chunks/open-plan.js'
import { type FitReport, fitReport, missingPart, type PartFit } from '../fit.js'
import { type BaseReplacement, type OpenAdapters, openAdapters } from './adapters.js'
import { findWeights, labelOf, missingError, namesIn, type WeightSearch } from './find-weights.js'
import { CHUNK_BYTES } from './layout.js'
import type { CheckpointNames } from './names/choose.js'
import { loadTables, type ModelTables } from './names/tables.js'
import { placeReplacements } from './place-replacements.js'
import { planMerge } from './plan.js'
import { refuseQuantizedConfig } from './refusals.js'
import {
  areTiedTogether,
  findReplacedPair,
  findTiedPair,
  isEmbeddingModule,
  type TiedPair,
  tieSetting,
} from './tied.js'

/** Near misses are looked for this often: each costs a comparison with every name of the base. */
const MAX_SUGGESTIONS = 20

/** Where the base is, and what is known of the adapter. */
export interface FitOptions {
  /** The checkpoint's file or index in its folder. Default: found there. */
  basePath?: string | undefined
  /** ‖s·B·A‖ by layer: then the weights are read, and each part has its relative change. */
  normDeltas?: ReadonlyMap<string, number> | undefined
}

/**
 * What does not fit is in the report; problems of the adapter itself are not, and what is sound of it is looked at.
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
      const { parts, ...report } = judge(checkpoint, opened, config, await loadTables())
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
type Parts = Pick<OpenAdapters, 'layers' | 'replacements'>

function judge(checkpoint: Checkpoint, adapter: Parts, config: Config, tables: ModelTables) {
  const { layers, replacements } = adapter
  const problems: string[] = []
  const note = (work: () => unknown) => problems.push(...attempt(work).problems.map(({ message }) => message))
  note(() => refuseQuantizedConfig(config, `${checkpoint.directory.name}/config.json`))
  const pair = findTiedPair(layers, checkpoint, config)
  const names = namesIn(checkpoint, layers, replacements, config, tables)
  const { locate } = names
  const replacedPair = findReplacedPair(replacements, checkpoint, config)
  const parts = [
    ...judgeLayers({ layers, names, locate, checkpoint, pair, config }),
    ...replacements.map((replacement) => judgeReplacement(replacement, checkpoint, names, replacedPair)),
  ]
  const changedPair = pair !== undefined && !areTiedTogether(layers) ? pair : undefined
  const isUntied = replacements.some(({ isTied, tensor }) => {
    const name = locate(tensor)
    return !isTied && (name === replacedPair?.head || name === replacedPair?.embedding)
  })
  const chosen = changedPair ?? (isUntied ? replacedPair : undefined)
  // What only shows in the whole. Two changes that are no sum have a place each where tied embeddings are untied.
  if (problems.length === 0 && parts.every(({ problem }) => problem === null)) {
    const tied = chosen === undefined ? 'keep' : 'untie'
    note(() => planMerge(checkpoint, layers, config, { tied }, replacements, tables))
  }
  const notes =
    chosen === undefined
      ? []
      : [`it changes tied embeddings, ${chosen.embedding} and ${chosen.head}: a merge has to untie or keep them`]
  return { parts, problems, notes }
}

function judgeLayers(search: WeightSearch): PartFit[] {
  const { layers, locate, checkpoint } = search
  const { tensors } = checkpoint
  let suggestions = 0
  return layers.flatMap((layer): PartFit[] => {
    const { value: found, problems } = attempt(() => findWeights(layer, search))
    let problem = problems[0]?.message ?? null
    // Of a parameter whose experts are stored one by one, each has its own line.
    const label = (tensor: string) => (found !== undefined && found.length > 1 ? tensor : labelOf(layer))
    if (found !== undefined) return found.map(({ name, tensor }) => partFit(label(name), tensor.info, problem))
    const unfit = tensors.get(`${locate(layer.name)}.${layer.tensor}`)
    if (unfit !== undefined) return [partFit(labelOf(layer), unfit.info, problem)]
    const isSuggested = ++suggestions <= MAX_SUGGESTIONS
    problem ??= missingError([layer], layers, isSuggested ? tensors : new Map()).message
    return [missingPart(labelOf(layer), problem)]
  })
}

function judgeReplacement(
  replacement: BaseReplacement,
  checkpoint: Checkpoint,
  names: CheckpointNames,
  pair: TiedPair | undefined,
): PartFit {
  const { tensor } = replacement
  const placing = { names, checkpoint, pair, tied: 'keep', isUntied: false } as const
  const problem = attempt(() => placeReplacements([replacement], placing)).problems[0]?.message ?? null
  const name = names.form(tensor)?.tensors[0].replace('*', '0') ?? tensor
  const stored = name === pair?.head ? [name, pair.embedding] : [name]
  const info = stored.map((own) => checkpoint.tensors.get(own)?.info).find((own) => own !== undefined)
  return info === undefined ? missingPart(tensor, problem!) : partFit(tensor, info, problem)
}

function partFit(name: string, { name: tensor, shape, dtype }: TensorInfo, problem: string | null): PartFit {
  return { name, tensor, shape, dtype, problem, relativeChange: null }
}

function vocabularyOf({ tensors }: Checkpoint, config: Config) {
  const modules = [...tensors.keys()].flatMap((name) => (name.endsWith('.weight') ? name.slice(0, -7) : []))
  const embedding = modules.find(isEmbeddingModule)
  const vocabulary = embedding === undefined ? null : (tensors.get(`${embedding}.weight`)!.info.shape[0] ?? null)
  const isTied = tieSetting(config) ?? (embedding === undefined ? null : !modules.some(isHeadModule))
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
    const base = await normOfTensor(shardSource(checkpoint, tensor.shard), tensor.info)
    if (base > 0) part.relativeChange = normDelta / base
  }
}

/** Frobenius, in pieces. */
async function normOfTensor(source: ByteSource, { dtype, offset, byteLength }: TensorInfo): Promise<number> {
  if (!isWeightDtype(dtype)) return 0
  let sum = 0
  for (let done = 0; done < byteLength; done += CHUNK_BYTES) {
    const bytes = await source.read(offset + done, Math.min(CHUNK_BYTES, byteLength - done))
    for (const value of decodeWeights(bytes, dtype)) sum += value * value
  }
  return Math.sqrt(sum)
}
