// Reads from a base what a merge needs to know: its names for the adapters' tensors, its tied weights, and its head.

import { type ByteSource, sameContents } from '../../core/base/bytes.js'
import { type Checkpoint, shardSource } from '../../files/checkpoint.js'
import type { TensorInfo } from '../../files/safetensors.js'
import type { BaseReplacement, OpenAdapters } from './adapters.js'
import type { ModelConfig } from './config-edit.js'
import { namesIn } from './find-weights.js'
import { type CheckpointNames, tensorsOf } from './names/choose.js'
import { loadTables, type ModelHead } from './names/tables.js'
import { findTies, groupOf, type TieGroup, type Ties } from './names/ties.js'

export interface BaseModel {
  readonly checkpoint: Checkpoint
  readonly config: ModelConfig | undefined
  readonly names: CheckpointNames
  readonly ties: Ties
  /** Replacements that do not change a tied weight: PEFT saves embeddings together with the layers that adapt them. */
  readonly unchanged: ReadonlySet<BaseReplacement>
  /** The head for the adapters' task. Undefined if they have no common task, or if the model is unknown. */
  readonly head: ModelHead | undefined
  readonly adapters: OpenAdapters['adapters']
}

/** Finds names, ties and head of a base. Tied tensors that are stored twice are compared, if adapters touch them. */
export async function knowBase(
  checkpoint: Checkpoint,
  config: ModelConfig | undefined,
  { adapters, layers, replacements, tasks, classes, sources }: OpenAdapters,
): Promise<BaseModel> {
  const tables = await loadTables()
  const names = namesIn(checkpoint, { layers, replacements, classes }, config, tables)
  const { groups, isKnown } = findTies(checkpoint, config, names, tables)
  const touched = new Set(tensorsOf({ layers, replacements }).map(names.locate))
  const equal: TieGroup[] = []
  for (const group of groups) {
    const isTouched = group.members.some((name) => touched.has(name))
    const members = isTouched ? await equalMembers(group, checkpoint) : group.members
    if (members.length > 1) equal.push({ ...group, members })
  }
  const ties = { groups: equal, isKnown }
  const unchanged = new Set<BaseReplacement>()
  for (const replacement of replacements) {
    const stored = replacement.rows === undefined ? groupOf(ties, names.locate(replacement.tensor))?.stored : undefined
    if (stored === undefined) continue
    const { info, source } = replacement
    const replaced = { info, source: sources[source] }
    if (await areSame(replaced, placeOf(stored, checkpoint))) unchanged.add(replacement)
  }
  const [task] = tasks
  const head = tasks.size === 1 ? tables.head(String(config?.model_type), task) : undefined
  return { checkpoint, config, names, ties, unchanged, head, adapters }
}

/** Returns the members of a tie that have equal values: transformers does not tie stored tensors that differ. */
async function equalMembers({ members, stored }: TieGroup, checkpoint: Checkpoint): Promise<readonly string[]> {
  const result: string[] = []
  for (const name of members) {
    const isOther = name !== stored && checkpoint.tensors.has(name)
    if (!isOther || (await areSame(placeOf(stored, checkpoint), placeOf(name, checkpoint)))) result.push(name)
  }
  return result
}

interface Place {
  readonly info: TensorInfo
  readonly source: ByteSource
}

function placeOf(tensor: string, checkpoint: Checkpoint): Place {
  const { info, shard } = checkpoint.tensors.get(tensor)!
  return { info, source: shardSource(checkpoint, shard) }
}

async function areSame(a: Place, b: Place): Promise<boolean> {
  if (a.info.dtype !== b.info.dtype) return false
  return sameContents({ ...a.info, source: a.source }, { ...b.info, source: b.source })
}
