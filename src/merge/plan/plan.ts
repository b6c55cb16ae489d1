// Plans a merge into a checkpoint: pure, from names, types and shapes. Strict: every layer of every adapter finds its
// weight, in the right shape, before anything is written.

import { type FloatDtype, isWeightDtype } from '../../base/dtype.js'
import { MismatchError, UnsupportedError } from '../../base/errors.js'
import type { Checkpoint } from '../../formats/checkpoint.js'
import { type JsonObject, toPlain } from '../../formats/json.js'
import type { LayerFactors, MergeParts } from './adapters.js'
import type { BaseModel } from './base-model.js'
import { type ConfigEdit, meaningOf } from './config-edit.js'
import { findWeights, missingError, type WeightSearch } from './find-weights.js'
import { layOut, type OutputFile, type OutputTensor, outputBytes } from './layout.js'
import { type Renamed, renamedTensors } from './names/choose.js'
import type { TieGroup } from './names/ties.js'
import { type AddedTensor, placeReplacements } from './place-replacements.js'
import { refuseQuantizedConfig } from './refusals.js'
import { resizedBase } from './resized.js'
import { partedTies, refuseUnknownTies, type TiedPolicy, tensorOf, tiedError, untiedTies } from './tied.js'

const INDEX_FILE = 'model.safetensors.index.json'

/** Options that shape the output. */
export interface PlanOptions {
  /** Default `refuse`. */
  tied?: TiedPolicy | undefined
  /** Goes on where a head needs tensors that neither base nor adapters have: loaders draw them anew. Default false. */
  allowMissing?: boolean | undefined
  /** Converts all fp64, fp32, fp16 and bf16 tensors. Default: types stay. */
  dtype?: FloatDtype | undefined
  /** Distributes the tensors anew over shards of at most so many bytes. Default: shards stay. */
  maxShardBytes?: number | undefined
  /** Name of the output where it is a single file. Default: the base's, or model.safetensors. */
  path?: string | undefined
}

/** The files of the result, byte for byte, and the names of its tensors. */
export interface MergePlan {
  readonly files: readonly OutputFile[]
  /** The output's tensors: name → shape. */
  readonly tensors: ReadonlyMap<string, readonly number[]>
  /** Names of those that the base does not have: a head's. */
  readonly added: readonly string[]
  /** Tensors that the base calls otherwise than the adapters do. */
  readonly renamed: readonly Renamed[]
  /** Changed tensors and the layers that change them, in the base's order. */
  readonly weights: readonly { readonly name: string; readonly layers: readonly LayerFactors[] }[]
  /** The new index; undefined when the base's is copied, or the output is a single file. */
  readonly index: { readonly path: string; readonly content: string } | undefined
  /** The base's index is copied as it is. */
  readonly copiesIndex: boolean
  readonly configEdit: ConfigEdit | undefined
}

/**
 * @throws MismatchError naming the layers without a weight, with near misses, or the weight of another shape, or the
 *   tied embedding, or what the head lacks; UnsupportedError for quantized bases and for weights that are not fp64,
 *   fp32, fp16 or bf16
 */
export function planMerge(
  original: BaseModel,
  { layers, replacements: all }: MergeParts,
  options: PlanOptions = {},
): MergePlan {
  const replacements = all.filter((replacement) => !original.unchanged.has(replacement))
  const { base, vocabulary } = resizedBase(original, replacements)
  const { checkpoint, config, names, ties } = base
  const { tied = 'refuse' } = options
  refuseQuantizedConfig(config, `${checkpoint.directory.name}/config.json`)
  const parts = { layers, replacements }
  const [parted] = partedTies(parts, base)
  if (parted !== undefined && tied === 'refuse') throw tiedError(parted, base)
  refuseUnknownTies(parts, base, tied)
  const untied = tied === 'untie' ? untiedTies(parts, base) : []
  const byTensor = assignLayers({ layers, names, checkpoint, ties, config }, untied)
  const { placed, added } = placeReplacements(replacements, { base, untied })
  const head = planHead(base, added, options.allowMissing)
  refuseCombinations(byTensor, placed)
  const tensors = [
    ...layers.map(({ name, tensor }) => `${name}.${tensor}`),
    ...replacements.map(({ tensor }) => tensor),
  ]
  const renamed = renamedTensors(tensors, names)
  return { ...planOutput({ checkpoint, byTensor, placed, added, untied, head, vocabulary }, options), renamed }
}

/** The changes of the output's tensors. */
interface Changes {
  readonly checkpoint: Checkpoint
  /** Output tensor → the layers merged into it. */
  readonly byTensor: ReadonlyMap<string, readonly LayerFactors[]>
  /** Output tensor → what it has in place of the base's own. */
  readonly placed: ReadonlyMap<string, Partial<OutputTensor>>
  /** Tensors that the base does not have. */
  readonly added: ReadonlyMap<string, AddedTensor>
  /** Tied weights that all become tensors of their own. */
  readonly untied: readonly TieGroup[]
  readonly head: ConfigEdit['head']
  /** The vocabulary's new size. */
  readonly vocabulary: number | undefined
}

function planOutput(changes: Changes, { dtype, maxShardBytes, path }: PlanOptions): Omit<MergePlan, 'renamed'> {
  const { checkpoint, added, untied, head, vocabulary } = changes
  const outputs = outputTensors(changes, dtype)
  const all = outputs.flat()
  const files = layOut(checkpoint, outputs, { maxShardBytes, path })
  const metadata = outputMetadata(checkpoint.indexMetadata, {
    isUntied: untied.length > 0 || vocabulary !== undefined,
    dtype,
  })
  const isRelaid =
    maxShardBytes !== undefined ||
    files.some(({ literals }) => literals.length > 0) ||
    metadata.size < checkpoint.indexMetadata.size
  const newIndexPath = maxShardBytes === undefined ? checkpoint.indexPath : files.length > 1 ? INDEX_FILE : undefined
  const edit = { untied: untied.map(({ path: way }) => way), dtype, vocabulary, head }
  return {
    files,
    tensors: new Map(all.map(({ name, base }) => [name, base.shape])),
    weights: all.filter(({ layers }) => layers.length > 0).map(({ name, layers }) => ({ name, layers })),
    index: isRelaid && newIndexPath !== undefined ? newIndex(newIndexPath, files, all, metadata) : undefined,
    copiesIndex: !isRelaid && checkpoint.indexPath !== undefined,
    added: [...added.keys()],
    configEdit: [untied[0], dtype, vocabulary, head].some((part) => part !== undefined) ? edit : undefined,
  }
}

/** The output's tensors by the base's shard, in the order of their bytes; new ones come in the last. */
function outputTensors({ checkpoint, byTensor, placed, added, untied }: Changes, dtype: FloatDtype | undefined) {
  const outputs: OutputTensor[][] = checkpoint.shards.map(() => [])
  for (const [name, tensor] of checkpoint.tensors) {
    const add = (own: string) => {
      outputs[tensor.shard].push({
        ...outputTensor(own, { info: tensor.info, source: tensor.shard }, byTensor.get(own) ?? [], dtype),
        ...placed.get(own),
      })
    }
    add(name)
    for (const { members, stored } of untied) {
      if (stored === name) for (const own of members) if (!checkpoint.tensors.has(own)) add(own)
    }
  }
  for (const own of outputs) own.sort((a, b) => a.base.offset - b.base.offset)
  for (const [name, tensor] of added) {
    outputs[outputs.length - 1].push({
      ...outputTensor(name, tensor, [], dtype ?? (tensor.dtype as FloatDtype)),
      isReplaced: true,
    })
  }
  return outputs
}

/** Output tensor → the layers merged into it. */
function assignLayers(search: WeightSearch, untied: readonly TieGroup[]): Map<string, LayerFactors[]> {
  const { layers, checkpoint } = search
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
    for (const { name, layer: own, group } of found ?? []) {
      if (group === undefined || untied.includes(group)) add(name, own)
      else if (!isRepeated(own, name, group, search)) {
        for (const member of group.members) if (tensors.has(member)) add(member, own)
      }
    }
  }
  if (missing.length > 0) throw missingError(missing, layers, tensors)
  return result
}

/** True if an adapter has the layer for an earlier one of tied weights too: one weight gets one change. */
function isRepeated(
  layer: LayerFactors,
  tensor: string,
  { members }: TieGroup,
  { layers, names }: WeightSearch,
): boolean {
  if (!layer.isTied) return false
  const place = members.indexOf(tensor)
  return layers.some((other) => {
    const at = other.isTied ? members.indexOf(tensorOf(other, { names })) : -1
    return at >= 0 && at < place
  })
}

/** True if each layer has rows of the tensor for itself. */
function areApart(layers: readonly LayerFactors[]): boolean {
  const regions = layers.flatMap(({ region }) => region ?? []).sort((a, b) => a.first - b.first)
  return regions.length === layers.length && regions.every(({ first }, i) => i === 0 || endOf(regions[i - 1]) <= first)
}

function isInside(row: number, { region }: LayerFactors): boolean {
  return region === undefined || (region.first <= row && row < endOf(region))
}

function endOf({ first, count }: NonNullable<LayerFactors['region']>): number {
  return first + count
}

/** Throws UnsupportedError for changes that are no sum, combined with other changes of the same tensor. */
function refuseCombinations(
  byTensor: ReadonlyMap<string, readonly LayerFactors[]>,
  placed: ReadonlyMap<string, Partial<OutputTensor>>,
): void {
  for (const [name, layers] of byTensor) {
    const isDora = layers.some(({ scales }) => scales !== undefined)
    const rows = placed.get(name)?.rows ?? []
    const hasRows = rows.some(({ index }) => layers.some((layer) => isInside(index, layer)))
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
  { info, source }: Pick<AddedTensor, 'info' | 'source'>,
  layers: readonly LayerFactors[],
  dtype: FloatDtype | undefined,
): OutputTensor {
  return {
    name,
    dtype: dtype !== undefined && isWeightDtype(info.dtype) ? dtype : info.dtype,
    base: info,
    source,
    layers,
    report: name.replace(/\.weight$/, ''),
    isReplaced: false,
    rows: [],
  }
}

/**
 * Keeps the metadata of the base's index that is true of the output too. transformers counts tied weights once in
 * total_parameters, and takes dtype for that of the weights where config.json has none.
 */
function outputMetadata(
  metadata: JsonObject,
  { isUntied, dtype }: { isUntied: boolean; dtype: FloatDtype | undefined },
): JsonObject {
  const untrue = [...(isUntied ? ['total_parameters'] : []), ...(dtype === undefined ? [] : ['dtype', 'torch_dtype'])]
  return new Map([...metadata].filter(([key]) => !untrue.includes(key)))
}

function newIndex(
  indexPath: string,
  files: readonly OutputFile[],
  tensors: readonly OutputTensor[],
  kept: JsonObject,
): MergePlan['index'] {
  const total_size = tensors.reduce((sum, tensor) => sum + outputBytes(tensor), 0)
  const weight_map = Object.fromEntries(files.flatMap(({ path, tensors: names }) => names.map((name) => [name, path])))
  const metadata = toPlain(new Map(kept).set('total_size', total_size))
  return { path: indexPath, content: `${JSON.stringify({ metadata, weight_map }, null, 2)}\n` }
}

/**
 * @param added tensors that the base does not have
 * @param allowMissing goes on without what the head needs
 * @returns undefined when the adapters bring no head
 * @throws MismatchError naming a tensor that the head needs and nobody has, unless it may be missing
 */
function planHead(
  { checkpoint, names, head, meanings }: BaseModel,
  added: ReadonlyMap<string, AddedTensor>,
  allowMissing = false,
): ConfigEdit['head'] {
  if (head === undefined || added.size === 0) return undefined
  const missing = head.tensors.find((name) => {
    const own = names.locate(name)
    return !added.has(own) && !checkpoint.tensors.has(own)
  })
  if (missing !== undefined && !allowMissing) {
    throw new MismatchError({
      where: missing,
      what: `a ${head.architecture} needs this tensor, which neither the base nor the adapter has. PEFT fills it with random numbers and does not save it, so the trained model cannot be restored`,
      hint: 'Train with it in modules_to_save, or merge into a base that has it. With `allowMissing`, loaders fill it with random numbers',
    })
  }
  const labelled = head.labelled.map((name) => added.get(names.locate(name))).find((tensor) => tensor !== undefined)
  const count = labelled?.info.shape[0]
  return { architecture: head.architecture, count, ...meaningOf(meanings, count) }
}
