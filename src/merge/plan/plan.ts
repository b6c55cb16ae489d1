// Plans a merge into a checkpoint from names, types and shapes: finds the weight of each layer of each adapter.

import { type FloatDtype, isWeightDtype } from '../../core/base/dtype.js'
import { attempt, MismatchError, UnsupportedError } from '../../core/base/errors.js'
import { formatShape } from '../../core/base/tensor.js'
import type { CheckpointTensor } from '../../files/checkpoint.js'
import { type JsonObject, toPlain } from '../../files/json.js'
import { isVocabularyModule } from '../../lora/peft/tied.js'
import type { MergeSettings } from '../settings.js'
import type { BaseReplacement, LayerFactors, MergeParts } from './adapters.js'
import type { BaseModel } from './base-model.js'
import { type ConfigEdit, meaningOf } from './config-edit.js'
import { findWeights, labelOf, missingError } from './find-weights.js'
import type { FitProblems } from './fit-problems.js'
import { layOut, type OutputFile, type OutputTensor, outputBytes } from './layout.js'
import { groupOf, type TieGroup } from './names/ties.js'
import type { WeightSearch } from './orientation.js'
import { type AddedTensor, type Placed, placeReplacements, storedOf } from './place-replacements.js'
import { refuseQuantizedConfig } from './refusals.js'
import { decideTies, partedTies, refuseUnknownTies, tensorOf } from './tied.js'

const INDEX_FILE = 'model.safetensors.index.json'
/** The most suggestions of similar names. Each needs a comparison with all names of the base. */
const MAX_SUGGESTIONS = 20

export interface PlanOptions extends Pick<MergeSettings, 'tied' | 'allowMissing' | 'maxShardBytes'> {
  /** Converts all fp64, fp32, fp16 and bf16 tensors. */
  dtype?: FloatDtype | undefined
  path?: string | undefined
}

/** Finds the places of all parts of the adapters in a base. `fit` gets the parts, their places and all problems. */
export function placeParts(original: BaseModel, parts: MergeParts, options: PlanOptions, fit: FitProblems) {
  const isKept = (replacement: BaseReplacement) => original.unchanged.has(replacement)
  const changing = { ...parts, replacements: parts.replacements.filter((replacement) => !isKept(replacement)) }
  const changed = decideTies(changing, original)
  const { layers, replacements } = changed
  const { base = original, vocabulary } = fit.note(() => resizedBase(original, replacements)) ?? {}
  const { checkpoint, config, names, ties } = base
  const { tied = 'untie' } = options
  fit.note(() => refuseQuantizedConfig(config, `${checkpoint.directory.name}/config.json`))
  fit.note(() => refuseUnknownTies(changed, base, tied))
  /** The tied weights that become separate tensors. */
  const untied = tied === 'untie' ? partedTies(changed, base) : []
  const warnings = untied.map(({ members }) => `${members.join(' and ')} were one weight, and are not any more`)
  fit.notes.push(...warnings)
  const byTensor = assignLayers({ layers, names, checkpoint, ties, config }, untied, fit)
  const { placed, added } = placeReplacements(replacements, base, untied, fit)
  for (const { tensor } of parts.replacements.filter(isKept))
    fit.parts.push({ name: tensor, info: storedOf(tensor, base) })
  const head = fit.note(() => planHead(base, added, options.allowMissing))
  if (added.size > 0) {
    const list = [...added.keys()].join(', ')
    fit.notes.push(`it brings the head of a ${base.head?.architecture}, which the base has not: ${list}`)
  }
  for (const [name, layers] of byTensor) fit.note(() => refuseCombination(name, layers, placed.get(name)))
  return { checkpoint, byTensor, placed, added, untied, head, vocabulary, warnings }
}

type Changes = ReturnType<typeof placeParts>

export function planOutput(changes: Changes, { dtype, maxShardBytes, path }: PlanOptions) {
  const { checkpoint, untied, head, vocabulary } = changes
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
  const indexPath = maxShardBytes === undefined ? checkpoint.indexPath : files.length > 1 ? INDEX_FILE : undefined
  return {
    files,
    weights: all.filter(({ layers }) => layers.length > 0),
    /** The path of the result's index, or undefined if the result has no index. */
    indexPath,
    newIndex: isRelaid ? newIndex(files, all, metadata) : undefined,
    edit: { untied: untied.map(({ path: way }) => way), dtype, vocabulary, head },
  }
}

/** Returns the tensors of each shard of the base, in the order of their bytes. New tensors go into the last shard. */
export function outputTensors({ checkpoint, byTensor, placed, added, untied }: Changes, dtype: FloatDtype | undefined) {
  const outputs: OutputTensor[][] = checkpoint.shards.map(() => [])
  for (const [name, tensor] of checkpoint.tensors) {
    const add = (tensorName: string) => {
      outputs[tensor.shard].push({
        ...outputTensor(tensorName, { info: tensor.info, source: tensor.shard }, byTensor.get(tensorName) ?? [], dtype),
        ...placed.get(tensorName),
      })
    }
    add(name)
    for (const { members, stored } of untied) {
      if (stored === name) for (const member of members) if (!checkpoint.tensors.has(member)) add(member)
    }
  }
  for (const tensors of outputs) tensors.sort((a, b) => a.base.offset - b.base.offset)
  for (const [name, tensor] of added) {
    outputs[outputs.length - 1].push({
      ...outputTensor(name, tensor, [], dtype ?? (tensor.dtype as FloatDtype)),
      isReplaced: true,
    })
  }
  return outputs
}

function assignLayers(
  search: WeightSearch,
  untied: readonly TieGroup[],
  fit: FitProblems,
): Map<string, LayerFactors[]> {
  const { layers, checkpoint, names } = search
  const { tensors } = checkpoint
  const result = new Map<string, LayerFactors[]>()
  const add = (tensor: string, layer: LayerFactors) => result.set(tensor, [...(result.get(tensor) ?? []), layer])
  const missing: LayerFactors[] = []
  for (const layer of layers) {
    const { value: found, problems } = attempt(() => findWeights(layer, search))
    let [problem] = problems
    if (problem !== undefined) fit.problems.push(problem)
    else if (found === undefined) {
      const isSuggested = missing.push(layer) <= MAX_SUGGESTIONS
      problem = missingError([layer], layers, isSuggested ? checkpoint : { ...checkpoint, tensors: new Map() })
    }
    for (const { name, layer: placedLayer, group, tensor } of found ?? []) {
      // If the experts of a parameter are stored one by one, each gets a line in the report.
      const label = found!.length > 1 ? name : labelOf(layer)
      fit.parts.push({ name: label, info: tensor.info })
      if (group === undefined || untied.includes(group)) add(name, placedLayer)
      else if (!isRepeated(placedLayer, name, group, search)) {
        for (const member of group.members) if (tensors.has(member)) add(member, placedLayer)
      }
    }
    if (problem === undefined) continue
    const unfit = tensors.get(`${names.locate(layer.name)}.${layer.tensor}`)
    fit.parts.push({ name: labelOf(layer), info: unfit?.info, problem })
  }
  if (missing.length > 0) fit.problems.push(missingError(missing, layers, checkpoint))
  return result
}

/** True if an earlier member of a tied group has a layer too: a shared weight is changed only once. */
function isRepeated(
  layer: LayerFactors,
  tensor: string,
  { members }: TieGroup,
  { layers, names }: WeightSearch,
): boolean {
  if (!layer.isTied) return false
  const place = members.indexOf(tensor)
  return layers.some((candidate) => {
    const at = candidate.isTied ? members.indexOf(tensorOf(candidate, { names })) : -1
    return at >= 0 && at < place
  })
}

function overlap({ region: a }: LayerFactors, { region: b }: LayerFactors): boolean {
  return a === undefined || b === undefined || (a.first < b.first + b.count && b.first < a.first + a.count)
}

function isInside(row: number, { region, isInputMajor }: LayerFactors): boolean {
  return region === undefined || isInputMajor || (region.first <= row && row < region.first + region.count)
}

/** Refuses changes that cannot be added to other changes of the same tensor: DoRA, and replaced values. */
export function refuseCombination(where: string, layers: readonly LayerFactors[], placed: Placed | undefined): void {
  const isMixed = layers.some((layer) => {
    return layer.scales !== undefined && layers.some((second) => second !== layer && overlap(layer, second))
  })
  const hasRows =
    placed?.rows?.some(({ index }) => layers.some((layer) => isInside(index, layer))) === true ||
    (placed?.columns !== undefined && layers.length > 0)
  if (!hasRows && !isMixed) return
  throw new UnsupportedError({
    where,
    what: hasRows
      ? 'replaced rows (trainable_token_indices) and a layer on one tensor cannot be merged together'
      : 'a DoRA layer and another adapter’s layer on one weight cannot be merged together',
  })
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
    layers: layers.map((layer) => ({ ...layer, report: name.replace(/\.weight$/, '') })),
    isReplaced: false,
    rows: [],
  }
}

/**
 * Makes the metadata: total_parameters counts tied weights once, as in transformers, and dtype is the weights' type.
 */
function outputMetadata(
  metadata: JsonObject,
  { isUntied, dtype }: { isUntied: boolean; dtype: FloatDtype | undefined },
): JsonObject {
  const untrue = [...(isUntied ? ['total_parameters'] : []), ...(dtype === undefined ? [] : ['dtype', 'torch_dtype'])]
  return new Map([...metadata].filter(([key]) => !untrue.includes(key)))
}

function newIndex(files: readonly OutputFile[], tensors: readonly OutputTensor[], kept: JsonObject): string {
  const total_size = tensors.reduce((sum, tensor) => sum + outputBytes(tensor), 0)
  const weight_map = Object.fromEntries(files.flatMap(({ path, tensors: names }) => names.map((name) => [name, path])))
  const metadata = toPlain(new Map(kept).set('total_size', total_size))
  return `${JSON.stringify({ metadata, weight_map }, null, 2)}\n`
}

/** Plans the edit of config.json for a head that the adapters add to the base. Returns undefined if they add none. */
function planHead(
  { checkpoint, names, head, adapters }: BaseModel,
  added: ReadonlyMap<string, AddedTensor>,
  allowMissing = false,
): ConfigEdit['head'] {
  if (head === undefined || added.size === 0) return undefined
  const missing = head.tensors.find((name) => {
    const located = names.locate(name)
    return !added.has(located) && !checkpoint.tensors.has(located)
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
  return { architecture: head.architecture, count, ...meaningOf(adapters, count) }
}

/**
 * Returns the base with its vocabulary grown, as PEFT saves resized embeddings whole. Undefined if it need not grow.
 */
function resizedBase(base: BaseModel, replacements: readonly BaseReplacement[]) {
  const { checkpoint, names, ties } = base
  const tensors = new Map<string, CheckpointTensor>(checkpoint.tensors)
  const sizes = new Map<string, readonly number[]>()
  for (const { tensor, info, rows } of replacements) {
    const name = names.locate(tensor)
    const stored = tensors.get(name) ?? tensors.get(groupOf(ties, name)?.stored ?? name)
    if (rows !== undefined || stored === undefined || !isVocabulary(tensor)) continue
    const [[count, ...rest], [rowsBefore, ...others]] = [info.shape, stored.info.shape]
    if (count === rowsBefore || rest.join() !== others.join()) continue
    for (const member of groupOf(ties, name)?.members ?? [name]) if (tensors.has(member)) sizes.set(member, info.shape)
  }
  if (sizes.size === 0) return undefined
  for (const [name, shape] of sizes) {
    const tensor = tensors.get(name)!
    tensors.set(name, { ...tensor, info: { ...tensor.info, shape } })
  }
  const [[first, [vocabulary]]] = sizes
  const before = checkpoint.tensors.get(first)!.info.shape[0]
  for (const [name, { info }] of tensors) {
    if (!isVocabulary(name) || info.shape[0] === vocabulary) continue
    // A table that had another size before, such as a table of positions, does not belong to the vocabulary.
    if (!sizes.has(name) && info.shape[0] !== before) continue
    throw notGrown(name, first, vocabulary, info.shape)
  }
  return { base: { ...base, checkpoint: { ...checkpoint, tensors } }, vocabulary }
}

/** The error for a module whose vocabulary stays as it is, though that of `first` grows to `rows`. */
export function notGrown(where: string, first: string, rows: number, [before, ...rest]: readonly number[]) {
  return new MismatchError({
    where,
    what: `the adapter gives ${first} another number of rows, but not this weight`,
    expected: formatShape([rows, ...rest]),
    got: formatShape([before, ...rest]),
    hint: 'Save the adapter with all embeddings that resize_token_embeddings has changed: save_embedding_layers=True',
  })
}

function isVocabulary(tensor: string): boolean {
  return /\.(weight|bias)$/.test(tensor) && isVocabularyModule(tensor.replace(/\.(weight|bias)$/, ''))
}
