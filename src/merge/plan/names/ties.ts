// Finds which tensors of a checkpoint transformers ties, from its table of tied weights for the model's class.

import { objectOf } from '../../../core/base/options.js'
import type { Checkpoint } from '../../../files/checkpoint.js'
import type { ModelConfig } from '../config-edit.js'
import type { CheckpointNames } from './choose.js'
import type { ModelTables, ModelTie } from './tables.js'

export interface TieGroup {
  readonly members: readonly string[]
  readonly stored: string
  /** True if the tensors are biases. The bias that is used is the head's. */
  readonly isBias: boolean
  readonly path: readonly string[]
}

export interface Ties {
  readonly groups: readonly TieGroup[]
  /** False if neither the tables nor config.json tell which tensors are tied: then only names give a hint. */
  readonly isKnown: boolean
}

type Config = ModelConfig | undefined

/** Returns the groups of tensors that config.json or the model's default ties, if at least one tensor is stored. */
export function findTies(
  { tensors }: Pick<Checkpoint, 'tensors'>,
  config: Config,
  names: CheckpointNames,
  tables: ModelTables,
): Ties {
  const type = String(config?.model_type)
  if (!tables.isKnown(type)) return { groups: [], isKnown: isUntied(config) }
  const groups = new Map<string, { members: Set<string>; path: readonly string[] }>()
  for (const { target, source, path, isDefault } of tiesOf(tables.ties(type), config, names, tensors)) {
    if (!(tieSettingAt(config, path) ?? isDefault)) continue
    const [from, to] = [names.locate(source), names.locate(target)]
    const group = groups.get(from) ?? groups.get(to) ?? { members: new Set(), path }
    for (const name of [from, to]) groups.set(name, group)
    group.members.add(from).add(to)
  }
  const found = [...new Set(groups.values())].flatMap(({ members, path }): TieGroup[] => {
    const stored = [...members].find((name) => tensors.has(name))
    if (stored === undefined) return []
    return [{ members: [...members], stored, path, isBias: tensors.get(stored)!.info.shape.length === 1 }]
  })
  return { groups: found, isKnown: true }
}

export function groupOf({ groups }: Ties, tensor: string): TieGroup | undefined {
  return groups.find(({ members }) => members.includes(tensor))
}

/** Returns the ties of the class that config.json names, or of the best fitting class if the table lacks it. */
function tiesOf(
  byClass: ReadonlyMap<string, readonly ModelTie[]>,
  config: Config,
  names: CheckpointNames,
  tensors: Checkpoint['tensors'],
): readonly ModelTie[] {
  const [architecture] = Array.isArray(config?.architectures) ? config.architectures : []
  const ofClass = byClass.get(String(architecture))
  if (ofClass !== undefined) return ofClass
  if (architecture !== undefined && isHeadless(String(architecture))) return []
  const fits = (ties: readonly ModelTie[]) =>
    ties.filter(({ target, source }) => [target, source].some((name) => tensors.has(names.locate(name)))).length
  return [...byClass.values()].reduce<readonly ModelTie[]>((best, ties) => (fits(ties) > fits(best) ? ties : best), [])
}

const HEADLESS =
  /(Model|Encoder|Backbone|For(Sequence|Token|Image|Audio|Video)Classification|For(QuestionAnswering|MultipleChoice|Retrieval|CTC|ObjectDetection|SemanticSegmentation))$/

/** True for classes without output embedding. Other classes are in the table, unless their code is custom. */
function isHeadless(architecture: string): boolean {
  return HEADLESS.test(architecture) && !/LMHead|DoubleHeads|EncoderDecoder/.test(architecture)
}

function tieSettingAt(config: Config, path: readonly string[]): boolean | undefined {
  let part = objectOf(config)
  for (const key of path) part = objectOf(part[key])
  const { tie_word_embeddings: value } = part
  return typeof value === 'boolean' ? value : undefined
}

function isUntied(config: Config): boolean {
  const said = [tieSettingAt(config, []), tieSettingAt(config, ['text_config'])]
  return said.includes(false) && !said.includes(true)
}
