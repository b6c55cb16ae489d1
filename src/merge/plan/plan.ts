// Plans a merge into a checkpoint: pure, from names, types and shapes. Strict: every layer of every adapter finds its weight,
// in the right shape, before anything is written.

import { type FloatDtype, isWeightDtype } from '../../base/dtype.js'
import { ConfigError, UnsupportedError } from '../../base/errors.js'
import type { Checkpoint, CheckpointTensor } from '../../formats/checkpoint.js'
import { type JsonObject, toPlain } from '../../formats/json.js'
import type { BaseReplacement, LayerFactors } from './adapters.js'
import { findWeights, missingError, namesIn, type WeightSearch } from './find-weights.js'
import { layOut, type OutputShard, type OutputTensor, outputBytes } from './layout.js'
import { type ModelTables, NO_TABLES } from './names/tables.js'
import { placeReplacements } from './place-replacements.js'
import { refuseQuantizedConfig } from './refusals.js'
import { areTiedTogether, findReplacedPair, findTiedPair, type TiedPair, type TiedPolicy, tiedError } from './tied.js'

const INDEX_FILE = 'model.safetensors.index.json'

/** What the output is to be. */
export interface PlanOptions {
  /** Default `refuse`. */
  tied?: TiedPolicy | undefined
  /** Converts all F64, F32, F16 and BF16 tensors. Default: types stay. */
  dtype?: FloatDtype | undefined
  /** Distributes the tensors anew over shards of at most so many bytes. Default: shards stay. */
  maxShardBytes?: number | undefined
  /** Name of the output where it is a single file. Default: the base's, or model.safetensors. */
  path?: string | undefined
}

/** A change of config.json. */
export interface ConfigEdit {
  isUntied: boolean
  dtype: FloatDtype | undefined
}

/** What becomes of each tensor and each byte. */
export interface MergePlan {
  readonly checkpoint: Checkpoint
  readonly shards: readonly OutputShard[]
  /** Of the output: name → shape. */
  readonly tensors: ReadonlyMap<string, readonly number[]>
  /** Names of those that adapters change or replace. */
  readonly changed: ReadonlySet<string>
  /** Of the output's shards. */
  readonly bytes: number
  /** Changed tensors and the layers that change them, in the base's order. */
  readonly weights: readonly { readonly name: string; readonly layers: readonly LayerFactors[] }[]
  /** The new index; undefined when the base's is copied, or the output is a single file. */
  readonly index: { readonly path: string; readonly content: string } | undefined
  /** The base's index is copied as it is. */
  readonly copiesIndex: boolean
  readonly configEdit: ConfigEdit | undefined
}

/**
 * @param config the content of config.json, where there is one
 * @param tables of transformers' models; without them names are taken as the adapters have them
 * @throws MismatchError naming the layers without a weight, with near misses, or the weight of another shape, or the tied
 *   embedding; UnsupportedError for quantised bases and for weights that are not F64, F32, F16 or BF16
 */
export function planMerge(
  checkpoint: Checkpoint,
  layers: readonly LayerFactors[],
  config: Readonly<Record<string, unknown>> | undefined,
  options: PlanOptions = {},
  replacements: readonly BaseReplacement[] = [],
  tables: ModelTables = NO_TABLES,
): MergePlan {
  const { tied = 'refuse', maxShardBytes } = options
  checkShardSize(maxShardBytes)
  refuseQuantizedConfig(config, `${checkpoint.directory.name}/config.json`)
  const pair = findTiedPair(layers, checkpoint, config)
  // Rows that are for both uses untie nothing.
  const parting = replacements.filter(({ rows, isTied }) => rows === undefined || !isTied)
  const untied = tied === 'untie' ? (pair ?? findReplacedPair(parting, checkpoint, config)) : undefined
  if (pair !== undefined && tied === 'refuse' && !areTiedTogether(layers))
    throw tiedError(pair, checkpoint.tensors.has(pair.head))
  const names = namesIn(checkpoint, layers, replacements, config, tables)
  const byTensor = assignLayers({ layers, names, locate: names.locate, checkpoint, pair, config }, tied)
  const placed = placeReplacements(replacements, {
    names,
    checkpoint,
    pair: untied ?? findReplacedPair(replacements, checkpoint, config),
    tied,
    isUntied: untied !== undefined,
  })
  refuseCombinations(byTensor, placed)
  return planOutput({ checkpoint, byTensor, placed, untied }, options)
}

function checkShardSize(maxShardBytes: number | undefined): void {
  if (maxShardBytes === undefined || (Number.isSafeInteger(maxShardBytes) && maxShardBytes > 0)) return
  throw new ConfigError({
    where: 'maxShardBytes',
    what: 'not usable',
    expected: 'a whole number of bytes above 0',
    got: String(maxShardBytes),
  })
}

/** What becomes of which tensors. */
interface Changes {
  readonly checkpoint: Checkpoint
  /** Output tensor → the layers merged into it. */
  readonly byTensor: ReadonlyMap<string, readonly LayerFactors[]>
  /** Output tensor → what it has in place of the base's own. */
  readonly placed: ReadonlyMap<string, Partial<OutputTensor>>
  /** Tied embeddings of which the head becomes a tensor of its own. */
  readonly untied: TiedPair | undefined
}

function planOutput(changes: Changes, { dtype, maxShardBytes, path }: PlanOptions): MergePlan {
  const { checkpoint, placed, untied } = changes
  const outputs = outputTensors(changes, dtype)
  const all = outputs.flat()
  const shards = layOut(checkpoint, outputs, { maxShardBytes, path })
  const metadata = outputMetadata(checkpoint.indexMetadata, { isUntied: untied !== undefined, dtype })
  const isRelaid =
    maxShardBytes !== undefined ||
    shards.some(({ header }) => header !== undefined) ||
    metadata.size < checkpoint.indexMetadata.size
  const newIndexPath = maxShardBytes === undefined ? checkpoint.indexPath : shards.length > 1 ? INDEX_FILE : undefined
  const changed = all.filter(({ name, layers }) => layers.length > 0 || placed.has(name))
  return {
    checkpoint,
    shards,
    tensors: new Map(all.map(({ name, base }) => [name, base.shape])),
    changed: new Set(changed.map(({ name }) => name)),
    bytes: shards.reduce((sum, { byteLength }) => sum + byteLength, 0),
    weights: changed.filter(({ layers }) => layers.length > 0).map(({ name, layers }) => ({ name, layers })),
    index: isRelaid && newIndexPath !== undefined ? newIndex(newIndexPath, shards, all, metadata) : undefined,
    copiesIndex: !isRelaid && checkpoint.indexPath !== undefined,
    configEdit: untied !== undefined ? { isUntied: true, dtype } : dtype && { isUntied: false, dtype },
  }
}

/** The output's tensors by the base's shard, in the order of their bytes. */
function outputTensors({ checkpoint, byTensor, placed, untied }: Changes, dtype: FloatDtype | undefined) {
  const outputs: OutputTensor[][] = checkpoint.shards.map(() => [])
  for (const [name, tensor] of checkpoint.tensors) {
    const add = (own: string, change = placed.get(own)) => {
      outputs[tensor.shard].push({ ...outputTensor(own, tensor, byTensor.get(own) ?? [], dtype), ...change })
    }
    add(name)
    if (name === untied?.embedding && !checkpoint.tensors.has(untied.head)) add(untied.head)
    if (name === untied?.bias?.stored) add(untied.bias.head, placed.get(name))
  }
  for (const own of outputs) own.sort((a, b) => a.base.offset - b.base.offset)
  return outputs
}

/** Output tensor → the layers merged into it. */
function assignLayers(search: WeightSearch, tied: TiedPolicy): Map<string, LayerFactors[]> {
  const { layers, checkpoint, pair } = search
  const { tensors } = checkpoint
  const result = new Map<string, LayerFactors[]>()
  const add = (tensor: string, layer: LayerFactors) => {
    const own = result.get(tensor)
    if (own === undefined) result.set(tensor, [layer])
    else own.push(layer)
  }
  const missing: LayerFactors[] = []
  for (const layer of layers) {
    const found = findWeights(layer, search)
    if (found === undefined) missing.push(layer)
    for (const { name, layer: own, isPaired } of found ?? []) {
      if (!isPaired || tied === 'untie') add(name, own)
      else if (!isRepeated(own, name, search)) {
        add(pair!.embedding, own)
        if (tensors.has(pair!.head)) add(pair!.head, own)
      }
    }
  }
  if (missing.length > 0) throw missingError(missing, layers, tensors)
  return result
}

/** Whether it is the output embedding's layer, of an adapter that has it for the input embedding too: one weight, one change. */
function isRepeated(layer: LayerFactors, tensor: string, { layers, locate, pair }: WeightSearch): boolean {
  if (!layer.isTied || tensor !== pair?.head) return false
  return layers.some((other) => other.isTied && `${locate(other.name)}.${other.tensor}` === pair.embedding)
}

/** Whether each layer has rows of the tensor for itself. */
function areApart(layers: readonly LayerFactors[]): boolean {
  const regions = layers.flatMap(({ region }) => region ?? []).sort((a, b) => a.first - b.first)
  return regions.length === layers.length && regions.every(({ first }, i) => i === 0 || endOf(regions[i - 1]) <= first)
}

function endOf({ first, count }: NonNullable<LayerFactors['region']>): number {
  return first + count
}

/** What is no sum cannot be combined with other changes of the same tensor. */
function refuseCombinations(
  byTensor: ReadonlyMap<string, readonly LayerFactors[]>,
  placed: ReadonlyMap<string, Partial<OutputTensor>>,
): void {
  for (const [name, layers] of byTensor) {
    const isDora = layers.some(({ scales }) => scales !== undefined)
    const hasRows = placed.get(name)?.rows !== undefined
    if (!hasRows && !(isDora && layers.length > 1 && !areApart(layers))) continue
    throw new UnsupportedError({
      where: name,
      what: hasRows
        ? 'replaced rows (trainable_token_indices) and a layer on one tensor cannot be merged together'
        : 'a DoRA layer and another adapter’s layer on one weight cannot be merged together',
    })
  }
}

function outputTensor(
  name: string,
  { info, shard }: CheckpointTensor,
  layers: readonly LayerFactors[],
  dtype: FloatDtype | undefined,
): OutputTensor {
  return {
    name,
    dtype: dtype !== undefined && isWeightDtype(info.dtype) ? dtype : info.dtype,
    base: info,
    shard,
    layers,
    isReplaced: false,
    rows: [],
  }
}

/**
 * What the base's index says of the whole that is true of the output too. transformers counts tied weights once in
 * total_parameters, and takes dtype for that of the weights where config.json has none.
 */
function outputMetadata(metadata: JsonObject, { isUntied, dtype }: ConfigEdit): JsonObject {
  const untrue = [...(isUntied ? ['total_parameters'] : []), ...(dtype === undefined ? [] : ['dtype', 'torch_dtype'])]
  return new Map([...metadata].filter(([key]) => !untrue.includes(key)))
}

function newIndex(
  indexPath: string,
  shards: readonly OutputShard[],
  tensors: readonly OutputTensor[],
  kept: JsonObject,
): MergePlan['index'] {
  const total_size = tensors.reduce((sum, tensor) => sum + outputBytes(tensor), 0)
  const weight_map = Object.fromEntries(shards.flatMap(({ path, tensors: names }) => names.map((name) => [name, path])))
  const metadata = toPlain(new Map(kept).set('total_size', total_size))
  return { path: indexPath, content: `${JSON.stringify({ metadata, weight_map }, null, 2)}\n` }
}
