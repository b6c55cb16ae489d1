// Opens a checkpoint for a merge, and plans the merge into it.

import type { FloatDtype } from '../core/base/dtype.js'
import { type Checkpoint, openCheckpoint } from '../files/checkpoint.js'
import { isEmbeddingModule, isHeadModule } from '../lora/peft/tied.js'
import { copyOf, textFile } from './base-files.js'
import type { OpenBase, PlanInput } from './parts.js'
import { knowBase } from './plan/base-model.js'
import type { ModelConfig } from './plan/config-edit.js'
import { placeParts, planOutput } from './plan/plan.js'

export async function openCheckpointBase(input: PlanInput): Promise<OpenBase> {
  const { chosen, outFile: path } = input
  const { directory } = input.base
  const checkpoint = await openCheckpoint(directory, chosen.checkpoint)
  input.closers.push(checkpoint.close)
  input.sources.push(...checkpoint.shards.map(({ file }) => file.source))
  return {
    where: `${directory.name}/${chosen.checkpoint ?? checkpoint.indexPath ?? checkpoint.shards[0].path}`,
    async plan(opened, config, fit) {
      Object.assign(fit, vocabularyOf(checkpoint.tensors, config?.values))
      // `refuseForFormat` lets only these types through for a checkpoint.
      const dtype = input.outDtype === 'keep' ? undefined : (input.outDtype as FloatDtype | undefined)
      // When unmerging: if the weights are still tied, the adapter was merged into the shared weight.
      const tied = input.sign === -1 ? 'keep' : input.tied
      const model = await knowBase(checkpoint, config?.values, opened)
      const options = { ...input, tied, dtype, path }
      const changes = placeParts(model, opened, options, fit)
      if (fit.listsAll || fit.problems.length > 0) return undefined
      const { files, weights, indexPath, newIndex, edit } = planOutput(changes, options)
      return {
        files,
        index:
          indexPath === undefined
            ? undefined
            : await (newIndex === undefined ? copyOf(directory, indexPath) : textFile(indexPath, newIndex)),
        replaced: [...checkpoint.shards.map((shard) => shard.path), checkpoint.indexPath ?? []].flat(),
        edit,
        vocabulary: edit.vocabulary ?? fit.vocabulary ?? undefined,
        warnings: changes.warnings,
        summary: { added: [...changes.added.keys()] },
        layers: weights.map(({ name, layers }) => ({
          name: moduleOf(name),
          adapters: layers.map(({ name: module, rank, scale }) => ({ module, rank, scale })),
        })),
      }
    },
  }
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
