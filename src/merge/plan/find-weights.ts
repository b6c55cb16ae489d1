// Finds the tensors of a checkpoint that a layer changes, by its name there or in transformers, and checks their shapes
// and types.

import { requireWeightDtype } from '../../core/base/dtype.js'
import { MismatchError, nearMisses } from '../../core/base/errors.js'
import { objectOf } from '../../core/base/options.js'
import { formatShape } from '../../core/base/tensor.js'
import type { Checkpoint, CheckpointTensor } from '../../files/checkpoint.js'
import { isStoredDtype } from '../../files/gguf/blocks.js'
import type { TensorInfo } from '../../files/safetensors.js'
import { isVocabularyModule } from '../../lora/peft/tied.js'
import type { LayerFactors, OpenAdapters } from './adapters.js'
import type { ModelConfig } from './config-edit.js'
import { stackedLayer } from './experts.js'
import { type CheckpointNames, chooseNames } from './names/choose.js'
import { isPlain, layersOfForm, unknownForm } from './names/forms.js'
import type { StoredForm } from './names/rules.js'
import type { ModelTables } from './names/tables.js'
import { groupOf, type TieGroup } from './names/ties.js'
import { storedLayer, type WeightSearch } from './orientation.js'
import { refuseQuantizedModule } from './refusals.js'

export interface FoundWeight {
  readonly name: string
  readonly tensor: CheckpointTensor
  readonly layer: LayerFactors
  readonly group: TieGroup | undefined
}

/**
 * Returns the tensors that a layer changes. If a tied output embedding is not stored, it is the input embedding. If
 * stacked experts are stored one by one, there are several.
 */
export function findWeights(layer: LayerFactors, search: WeightSearch): readonly FoundWeight[] | undefined {
  const { names, ties } = search
  const { tensors } = search.checkpoint
  const wanted = `${layer.name}.${layer.tensor}`
  const form = names.form(wanted)
  if (form === undefined) throw unknownForm(wanted)
  if (!isPlain(form)) return inAnotherForm(layer, form, search)
  const [name] = form.tensors
  const module = name.endsWith(`.${layer.tensor}`) ? name.slice(0, -layer.tensor.length - 1) : names.locate(layer.name)
  const group = groupOf(ties, name)
  const tensor = tensors.get(name) ?? (group && tensors.get(group.stored))
  const refuseQuantized = () =>
    refuseQuantizedModule(layer.experts === undefined ? module : name, (name) => tensors.has(name))
  if (tensor !== undefined) {
    if (!isStoredDtype(tensor.info.dtype)) refuseQuantized()
    const placed =
      layer.experts === undefined
        ? storedLayer(layer, module, tensor.info, search)
        : stackedLayer(layer, tensor.info, search)
    checkWeight(placed, tensor.info)
    return [{ name, tensor, layer: placed, group }]
  }
  refuseQuantized()
  if (layer.experts === undefined && layer.tensor === 'bias' && tensors.has(`${module}.weight`)) {
    throw new MismatchError({
      where: name,
      what: 'the adapter has a bias of B (lora_bias), but the base has no bias here to add it to',
    })
  }
  return undefined
}

function inAnotherForm(layer: LayerFactors, form: StoredForm, search: WeightSearch): FoundWeight[] {
  const { tensors } = search.checkpoint
  for (const stored of form.tensors) {
    const module = stored.replace('*', '0').replace(/\.weight$/, '')
    refuseQuantizedModule(module, (name) => tensors.has(name))
  }
  return layersOfForm(layer, form, search).map(({ tensor: name, layer: placed }) => {
    const tensor = tensors.get(name)!
    checkWeight(placed, tensor.info)
    return { name, tensor, layer: placed, group: undefined }
  })
}

/**
 * Finds out how the checkpoint names the model's tensors, from the layers of the adapters or, if they have none, from
 * the replaced tensors.
 */
export function namesIn(
  { tensors }: Checkpoint,
  { layers, replacements, classes }: Pick<OpenAdapters, 'layers' | 'replacements' | 'classes'>,
  config: ModelConfig | undefined,
  tables: ModelTables,
): CheckpointNames {
  const wanted = layers.map(({ name, tensor }) => {
    // If the base has no such bias, it may still have the weight of the same module.
    const isThere = (stored: string) => tensor === 'bias' && tensors.has(`${stored.slice(0, -'.bias'.length)}.weight`)
    return { name: `${name}.${tensor}`, isThere }
  })
  const entries = typesOf(config, classes, tables).flatMap((type) => tables.names(type))
  return chooseNames(layers.length > 0 ? wanted : replacements.map(({ tensor: name }) => ({ name })), tensors, entries)
}

/** Returns model types to try: first of parts for which the adapters were made, such as CLIP's vision model. */
function typesOf(config: ModelConfig | undefined, classes: ReadonlySet<string>, tables: ModelTables): string[] {
  const parts = Object.values(config ?? {})
    .map((part) => objectOf(part).model_type)
    .filter((type) => typeof type === 'string')
  const isMeant = (type: string) => [...classes].some((name) => tables.isClassOf(name, type))
  return [...parts.filter(isMeant), String(config?.model_type)]
}

function checkWeight({ name, shape: expected }: LayerFactors, info: TensorInfo): void {
  const { name: tensor, dtype, shape } = info
  if (!isStoredDtype(dtype)) {
    const what = 'a weight of this type cannot be merged into'
    requireWeightDtype(dtype, tensor, what, 'Merge into the unquantized checkpoint')
  }
  if (formatShape(shape) === formatShape(expected)) return
  throw new MismatchError({
    where: tensor,
    what: 'the adapter has another shape for this weight',
    expected: formatShape(expected),
    got: formatShape(shape),
    hint: isVocabularyModule(name)
      ? 'Its base had another vocabulary: resize the embeddings of this base first'
      : 'The adapter belongs to another base',
  })
}

export function labelOf({ name, tensor, experts }: LayerFactors): string {
  return experts === undefined ? name : `${name}.${tensor}`
}

export function missingError(
  missing: readonly LayerFactors[],
  layers: readonly LayerFactors[],
  { tensors, shards: [{ path }, ...others] }: Checkpoint,
): MismatchError {
  const labels = [...new Set(missing.map(labelOf))]
  const modules = [...tensors.keys()].map((name) => name.replace(/\.weight$/, ''))
  const near = nearMisses(labels[0], modules)
  const isPart = others.length === 0 && /-\d{5}-of-\d{5}\.safetensors$/.test(path)
  const nearest = near.length > 0 ? `Nearest to the first: ${near.join(', ')}` : undefined
  const hint = isPart ? 'The base is one of several files: give their folder' : nearest
  const isNone = labels.length === new Set(layers.map(labelOf)).size
  const shown = labels.slice(0, 5).join(', ') + (labels.length > 5 ? `, … (${labels.length} in all)` : '')
  return new MismatchError({
    where: 'adapter',
    what: isNone ? `none of its layers is in the base: ${shown}` : `the base has no weight for ${shown}`,
    expected: `a tensor ${labels[0]}${missing[0].experts === undefined ? '.weight' : ''}`,
    ...(hint !== undefined && { hint }),
  })
}
