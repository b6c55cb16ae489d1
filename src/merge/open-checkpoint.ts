// Plans a merge into a checkpoint. The new config.json is made here too, so that it cannot fail once weights are
// written.

import { MismatchError } from '../base/errors.js'
import { type Checkpoint, openCheckpoint } from '../formats/checkpoint.js'
import { isEmbeddingModule, isHeadModule } from '../peft/tied.js'
import { copyOf, textFile } from './companions.js'
import { otherFiles } from './other-files.js'
import { openPartAdapters, type PartInput, type PlanPart, unfinishedPart } from './parts.js'
import { requireFiniteReplacements } from './plan/adapters.js'
import { knowBase } from './plan/base-model.js'
import { CONFIG_FILE, editConfig, headWarning, loadConfig, type ModelConfig, otherDtype } from './plan/config-edit.js'
import { Fit } from './plan/fit.js'
import { renamedTensors } from './plan/names/choose.js'
import { placeParts, planOutput } from './plan/plan.js'
import { requireWeightOne } from './weighted.js'

export async function openCheckpointPart(input: PartInput): Promise<PlanPart> {
  const { base, chosen, sources, closers, outFile: path, weightsOnly = false, onlyFits = false } = input
  const { directory } = base
  const checkpoint = await openCheckpoint(directory, chosen.checkpoint)
  closers.push(checkpoint.close)
  for (const { file, dataStart } of checkpoint.shards) {
    sources.push(file.source)
    input.baseFiles.set(file.source, dataStart)
  }
  const opened = await openPartAdapters(input)
  const config = await loadConfig(directory)
  const dtype = input.outDtype === 'keep' ? undefined : input.outDtype
  const fit = new Fit(onlyFits)
  fit.where = `${directory.name}/${chosen.checkpoint ?? checkpoint.indexPath ?? checkpoint.shards[0].path}`
  Object.assign(fit, vocabularyOf(checkpoint.tensors, config?.values))
  fit.add(...opened.problems)
  for (const { layer, weight } of opened.magnitudes) fit.note(() => requireWeightOne(layer.name, weight))
  const model = await knowBase(checkpoint, config?.values, opened)
  const options = { ...input, dtype, path }
  const changes = placeParts(model, opened, options, fit)
  if (onlyFits || fit.problems.length > 0) return unfinishedPart(fit)
  const plan = planOutput(changes, options)
  const warnings = configWarnings(plan, config?.values, { weightsOnly, where: directory.name })
  await requireFiniteReplacements(opened)
  const own = [...checkpoint.shards.map((shard) => shard.path), checkpoint.indexPath ?? []].flat()
  const edited = plan.configEdit && config && !weightsOnly ? editConfig(config, plan.configEdit) : undefined
  const vocabulary = changes.vocabulary ?? fit.vocabulary ?? undefined
  const { files: others, leftOut, warnings: told } = await otherFiles(input, own, edited, vocabulary)
  warnings.push(...told)
  const copied = others.map((file) => file.path)
  if (plan.copiedIndex !== undefined) others.push(await copyOf(directory, plan.copiedIndex))
  if (plan.index !== undefined) others.push(textFile(plan.index.path, plan.index.content))
  const names = plan.weights.map(({ name }) => moduleOf(name))
  return {
    files: plan.files,
    others,
    magnitudes: opened.magnitudes,
    summary: {
      added: [...changes.added.keys()],
      renamed: renamedTensors(opened, model.names),
      copied,
      leftOut,
      warnings,
    },
    layers: plan.weights.map(({ name, layers }) => ({
      name: moduleOf(name),
      adapters: layers.map(({ name: module, rank, scale }) => ({ module, rank, scale })),
    })),
    tensors: plan.tensors,
    fit,
    changes: async (sums) => names.map((name) => ({ name, relativeChange: sums.relativeChange(name) })),
  }
}

/** Warnings about changes of config.json if the result gets none. */
function configWarnings(
  { configEdit }: ReturnType<typeof planOutput>,
  config: ModelConfig | undefined,
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

function vocabularyOf(tensors: Checkpoint['tensors'], config: ModelConfig | undefined) {
  const modules = [...tensors.keys()].flatMap((name) => (name.endsWith('.weight') ? moduleOf(name) : []))
  const embedding = modules.find(isEmbeddingModule)
  const vocabulary = embedding === undefined ? null : (tensors.get(`${embedding}.weight`)!.info.shape[0] ?? null)
  const said = config?.tie_word_embeddings
  const isTied = typeof said === 'boolean' ? said : embedding === undefined ? null : !modules.some(isHeadModule)
  return { vocabulary, isTied }
}

function moduleOf(tensor: string): string {
  return tensor.replace(/\.weight$/, '')
}
