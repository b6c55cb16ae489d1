// Finds the low-rank adapter that is closest to a fine-tuned checkpoint. Large tensors are read in blocks of rows.

import { closing, type Place } from '../../core/base/bytes.js'
import { didYouMean, MismatchError, StateError } from '../../core/base/errors.js'
import { Steps, type ToolRun } from '../../core/base/progress.js'
import { transpose } from '../../core/base/tensor.js'
import { type StreamedMatrix, streamedSvd } from '../../core/linalg/streamed-svd.js'
import type { Svd } from '../../core/linalg/svd.js'
import { type Checkpoint, openCheckpoint, shardSource } from '../../files/checkpoint.js'
import type { LoraAdapter } from '../../lora/adapter.js'
import { type LoraConfig, resolveConfig } from '../../lora/config.js'
import { moduleOf, type ReplacementView, type StoredTensor } from '../../lora/part.js'
import { isEmbeddingModule, isHeadModule, isVocabularyModule } from '../../lora/peft/tied.js'
import { energyOf } from '../../lora/spectrum.js'
import { loadConfig } from '../plan/config-edit.js'
import { isConv1dModule } from '../plan/orientation.js'
import { refuseQuantizedConfig } from '../plan/refusals.js'
import {
  DifferenceMemory,
  differenceOf,
  hasSameBytes,
  KEPT_VALUES,
  type Located,
  requireSameShape,
} from './difference.js'
import { assemble, type NewLayer, type PartShell } from './factor-parts.js'
import { checkRankChoice, type RankChoice } from './rank.js'
import { closestPairs, totalError } from './resize.js'

type NewTensor = ReplacementView<StoredTensor>

/** The kinds of weights whose change becomes factors. `conv1d` weights are stored as (k, d), as in GPT-2. */
type ExtractKind = 'linear' | 'conv1d' | 'embedding' | 'parameter'

/** How {@link extractAdapter} works. */
export interface ExtractSettings extends RankChoice, ToolRun {
  /**
   * How changed input and output embeddings are kept: `lora`, as layers; `save`, whole, as PEFT's modules_to_save;
   * `skip`, not at all. If the number of tokens changed, they are saved whole instead of `lora`.
   * @default lora
   */
  embeddings?: 'lora' | 'save' | 'skip' | undefined
  /**
   * What happens to changed tensors that LoRA cannot express, such as norms and biases: `save` keeps them whole, `skip`
   * leaves them out. The result lists them in both cases.
   * @default save
   */
  others?: 'save' | 'skip' | undefined
}

/** A layer that was extracted. */
export interface ExtractedLayer {
  /** The name of the tensor in the checkpoints. */
  name: string
  rank: number
  /** ‖ΔW‖, the Frobenius norm. */
  norm: number
  /** ‖ΔW‖/‖W‖ */
  relativeChange: number
  /** The lost share of the change: ‖ΔW − s·B·A‖/‖ΔW‖. */
  error: number
}

/** Result of {@link extractAdapter}. */
export interface ExtractResult {
  adapter: LoraAdapter
  layers: ExtractedLayer[]
  /** Over all layers: √Σ‖ΔW − s·B·A‖² / √Σ‖ΔW‖². */
  error: number
  /** Changed or new tensors that the adapter contains whole. */
  saved: string[]
  /** Changed or new tensors that the adapter leaves out. */
  skipped: string[]
  /** Tensors of the base that the fine-tuned checkpoint does not have. */
  missing: string[]
}

export async function extractAdapter(
  base: Place,
  tuned: Place,
  settings: ExtractSettings,
  keptValues = KEPT_VALUES,
): Promise<ExtractResult> {
  checkRankChoice(settings)
  const config = (await loadConfig(base.directory))?.values
  const job = { ...settings, config, keptValues, memory: new DifferenceMemory() }
  return closing(await openPlace(base), async (from) => {
    return closing(await openPlace(tuned), (to) => extractFrom(from, to, job))
  })
}

async function openPlace({ directory, file }: Place): Promise<Checkpoint> {
  refuseQuantizedConfig((await loadConfig(directory))?.values, `${directory.name}/config.json`)
  return openCheckpoint(directory, file)
}

interface Job extends ExtractSettings {
  readonly config: Readonly<Record<string, unknown>> | undefined
  readonly keptValues: number
  readonly memory: DifferenceMemory
}

async function extractFrom(base: Checkpoint, tuned: Checkpoint, job: Job): Promise<ExtractResult> {
  const { embeddings = 'lora', others = 'save', on, signal, config } = job
  checkRelated(base, tuned)
  const result = { layers: [] as ExtractedLayer[], saved: [] as string[], skipped: [] as string[] }
  const layers: NewLayer[] = []
  const replacements: NewTensor[] = []
  const steps = new Steps(tuned.tensors.size, { on, signal })
  const keep = async (located: Located, isKept: boolean, key?: string) => {
    const { name, dtype, shape, offset, byteLength } = located.tensor.info
    ;(isKept ? result.saved : result.skipped).push(name)
    if (!isKept) return
    const data = new Uint8Array(await shardSource(located.checkpoint, located.tensor.shard).read(offset, byteLength))
    const names = { name, module: moduleOf(name), key: key ?? name, isTrained: true }
    replacements.push({ kind: 'replacement', ...names, tensors: { weight: { dtype, shape, data } } })
  }
  const biases: Located[] = []
  for (const [name, tensor] of tuned.tensors) {
    const located: Located = { checkpoint: tuned, tensor }
    const before = base.tensors.get(name)
    if (before === undefined) await keep(located, others === 'save')
    else {
      const from: Located = { checkpoint: base, tensor: before }
      const kind = kindOf(name, before.info.shape, tensor.info.shape, base)
      if (!(await hasSameBytes(from, located))) {
        if (kind === 'bias') biases.push(located)
        else if (kind === 'vocabulary') await keep(located, embeddings !== 'skip')
        else if (isVocabularyModule(moduleOf(name)) && embeddings !== 'lora') await keep(located, embeddings === 'save')
        else if (kind === 'other') {
          const isChanged = (await differenceOf(from, located, job.memory)).isChanged
          if (isChanged) await keep(located, others === 'save')
        } else {
          const found = await extractLayer(name, kind, from, located, job)
          if (found !== undefined) {
            layers.push(found.layer)
            result.layers.push(found.report)
          }
        }
      }
    }
    await steps.next(name)
  }
  // In PEFT's file, the bias of an adapted layer has another name, because PEFT wraps the layer.
  const adapted = new Set(layers.map(({ part }) => part.name))
  for (const located of biases) {
    const module = moduleOf(located.tensor.info.name)
    await keep(located, others === 'save', adapted.has(module) ? `${module}.base_layer.bias` : undefined)
  }
  if (layers.length === 0 && replacements.length === 0) {
    throw new StateError({
      where: tuned.directory.name,
      what: 'no tensor that an adapter would hold differs from the base',
      hint: 'Check that both are not the same model',
    })
  }
  await job.memory.release()
  const adapter = assemble(extractConfig(layers, replacements, base, config), layers, replacements)
  const missing = [...base.tensors.keys()].filter((name) => !tuned.tensors.has(name))
  return { adapter, ...result, error: totalError(result.layers), missing }
}

function checkRelated(base: Checkpoint, tuned: Checkpoint): void {
  const names = [...tuned.tensors.keys()]
  if (names.some((name) => base.tensors.has(name))) return
  throw new MismatchError({
    where: tuned.directory.name,
    what: `not a fine-tuned form of ${base.directory.name}: no tensor has the same name`,
    got: names[0],
    hint: didYouMean(names[0], base.tensors.keys(), 3),
  })
}

function kindOf(
  name: string,
  shape: readonly number[],
  tuned: readonly number[],
  base: Checkpoint,
): ExtractKind | 'bias' | 'vocabulary' | 'other' {
  const module = moduleOf(name)
  const isWeight = name.endsWith('.weight')
  const isVocabulary = isWeight && isVocabularyModule(module) && shape.length === 2 && shape[1] === tuned[1]
  if (isVocabulary && shape[0] !== tuned[0]) return 'vocabulary'
  requireSameShape(name, shape, tuned)
  if (name.endsWith('.bias') && shape.length === 1) return 'bias'
  if (isWeight && shape.length === 2) {
    if (isEmbeddingModule(module)) return 'embedding'
    // Tables of positions and token types are embeddings too.
    if (/embed|^wpe$/i.test(module.slice(module.lastIndexOf('.') + 1))) return 'embedding'
    return isConv1dModule(module, base.tensors) ? 'conv1d' : 'linear'
  }
  return shape.length === 3 && !isWeight && /\.experts\./.test(name) ? 'parameter' : 'other'
}

async function extractLayer(
  name: string,
  kind: ExtractKind,
  from: Located,
  to: Located,
  job: Job,
): Promise<{ layer: NewLayer; report: ExtractedLayer } | undefined> {
  const difference = await differenceOf(from, to, job.memory, job.keptValues)
  if (!difference.isChanged) return undefined
  const { shape } = from.tensor.info
  const count = kind === 'parameter' ? shape[0] : 1
  const rows = shape.length === 3 ? shape[1] : shape[0]
  const found = []
  for (let e = 0; e < count; e++) {
    const matrix = difference.matrix({ first: e * rows, count: rows })
    found.push({ svd: await leadingSvd(matrix, job), energy: matrix.energy })
  }
  // The SVD is of the weight as it is stored.
  const { pairs: stored, rank, error } = closestPairs(found, job, new Float32Array())
  const isTurned = kind === 'embedding' || kind === 'conv1d'
  const pairs = stored.map(({ weightA, weightB }) => {
    return isTurned ? { weightA: transpose(weightB), weightB: transpose(weightA) } : { weightA, weightB }
  })
  const kindAndName = {
    kind: kind === 'conv1d' ? 'linear' : kind,
    name: kind === 'parameter' ? name : moduleOf(name),
  } as const
  const part: PartShell = { ...kindAndName, dtype: 'fp32', tensors: pairs[0] }
  const { norm, baseNorm } = difference
  const relativeChange = baseNorm === 0 ? Number.POSITIVE_INFINITY : norm / baseNorm
  return { layer: { part, change: { pairs, vectors: {} } }, report: { name, rank, norm, relativeChange, error } }
}

/** The first number of singular values to compute if `energy` decides the rank. */
const FIRST_RANK = 32

/** Computes the leading singular values and vectors: a few, then twice as many until they hold the wanted energy. */
async function leadingSvd(matrix: StreamedMatrix, { rank, energy: share }: RankChoice): Promise<Svd> {
  const side = Math.min(...matrix.shape)
  const most = Math.min(rank ?? side, side)
  for (let count = share === undefined ? most : FIRST_RANK; ; count *= 2) {
    const svd = await streamedSvd(matrix, Math.min(count, most))
    if (count >= most || energyOf(svd.s) >= share! * matrix.energy) return svd
  }
}

/** A config that names the modules, so that PEFT adapts exactly these. */
function extractConfig(
  layers: readonly NewLayer[],
  replacements: readonly NewTensor[],
  base: Checkpoint,
  config: Readonly<Record<string, unknown>> | undefined,
): LoraConfig {
  const modules = layers.filter(({ part }) => part.kind !== 'parameter').map(({ part }) => part.name)
  const changesEmbedding = [...modules, ...replacements.map(({ name }) => name.replace(/\.weight$/, ''))].some(
    isEmbeddingModule,
  )
  const hasHead = [...base.tensors.keys()].some((name) => isHeadModule(name.replace(/\.weight$/, '')))
  const architectures = config?.architectures
  const isCausal = Array.isArray(architectures) && /ForCausalLM|LMHeadModel/.test(String(architectures[0]))
  return resolveConfig({
    targetModules: targetsOf(modules, base),
    targetParameters: layers.filter(({ part }) => part.kind === 'parameter').map(({ part }) => part.name),
    fanInFanOut: modules.length > 0 && modules.every((name) => isConv1dModule(name, base.tensors)),
    bias: replacements.some(({ key }) => key.endsWith('.base_layer.bias')) ? 'lora_only' : 'none',
    // A model without a separate head also uses the embedding for its output.
    ensureWeightTying: changesEmbedding && isCausal && !hasHead,
    ...(isCausal && { taskType: 'CAUSAL_LM' }),
  })
}

/** The last parts of the names, if they match no other weight of the base; otherwise the full names. */
function targetsOf(modules: readonly string[], base: Checkpoint): string[] {
  const end = (name: string) => name.slice(name.lastIndexOf('.') + 1)
  const targeted = new Set(modules)
  const others = new Set(
    [...base.tensors.values()].flatMap(({ info: { name, shape } }) => {
      const module = name.replace(/\.weight$/, '')
      return shape.length > 1 && !targeted.has(module) ? [end(module)] : []
    }),
  )
  const ends = [...new Set(modules.map(end))].sort()
  return ends.some((name) => others.has(name)) ? [...modules] : ends
}
