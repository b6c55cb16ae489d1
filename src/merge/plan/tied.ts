// Tied embeddings: a weight that is both input and output embedding.

import { MismatchError } from '../../core/base/errors.js'
import { isEmbeddingModule, isHeadModule, isVocabularyModule } from '../../lora/peft/tied.js'
import type { BaseReplacement, LayerFactors, MergeParts } from './adapters.js'
import type { BaseModel } from './base-model.js'
import { groupOf, type TieGroup } from './names/ties.js'

/**
 * What happens if an adapter changes only one of two tied embeddings. `untie`: the output embedding becomes a separate
 * weight, and config.json says so. `keep`: the shared weight changes for both uses.
 */
export type TiedPolicy = 'untie' | 'keep'

export function tensorOf({ name, tensor }: LayerFactors, { names }: Pick<BaseModel, 'names'>): string {
  return names.locate(`${name}.${tensor}`)
}

/**
 * Decides which parts are tied that only the config calls so. PEFT's ensure_weight_tying knows `embed_tokens` and
 * `lm_head` alone, and does nothing for other names. If it has tied a part, the adapter has another use's part too.
 */
export function decideTies({ layers, replacements }: MergeParts, base: BaseModel): MergeParts {
  const isMate = (tensor: string, other: string) => {
    if (base.ties.isKnown) return groupOf(base.ties, tensor)?.members.includes(other) === true
    return [tensor, other].every((name) => isVocabularyModule(name.replace(/\.weight$/, '')))
  }
  const names = new Map<LayerFactors | BaseReplacement, string>([
    ...layers.map((layer) => [layer, tensorOf(layer, base)] as const),
    ...replacements.map((replacement) => [replacement, base.names.locate(replacement.tensor)] as const),
  ])
  const proven = <T extends LayerFactors | BaseReplacement>(parts: readonly T[]) =>
    parts.map((part) => {
      if (part.isTied !== 'claimed') return part
      const tensor = names.get(part)!
      const hasMate = parts.some((other) => {
        const name = names.get(other)!
        return other.adapter === part.adapter && name !== tensor && isMate(tensor, name)
      })
      return { ...part, isTied: hasMate }
    })
  return { layers: proven(layers), replacements: proven(replacements) }
}

/** Returns the tied weights that the adapters would separate because they change only one of the two uses. */
export function partedTies({ layers, replacements }: MergeParts, base: BaseModel): TieGroup[] {
  const changed = [
    ...layers.filter(({ isTied }) => !isTied).map((layer) => tensorOf(layer, base)),
    ...replacements.filter(({ isTied }) => !isTied).map(({ tensor }) => base.names.locate(tensor)),
  ]
  const parted = changed.flatMap((tensor) => groupOf(base.ties, tensor) ?? []).filter(({ isBias }) => !isBias)
  const paths = new Set(parted.map(({ path }) => path.join('.')))
  // config.json can only tie all weights of a part, or none.
  return base.ties.groups.filter(({ path }) => paths.has(path.join('.')))
}

/**
 * If lowrank does not know the model's type, throws for an adapted embedding, which may be tied to another tensor. With
 * the policy `keep`, nothing is checked.
 */
export function refuseUnknownTies(parts: MergeParts, base: BaseModel, tied: TiedPolicy): void {
  if (base.ties.isKnown || tied === 'keep') return
  const { tensors } = base.checkpoint
  const hasHead = [...tensors.keys()].some((name) => name.endsWith('.weight') && isHeadModule(name.slice(0, -7)))
  const named = [
    ...parts.layers.filter(({ isTied, tensor }) => !isTied && tensor === 'weight').map(({ name }) => name),
    ...parts.replacements
      .filter(({ isTied, info }) => !isTied && info.shape.length === 2)
      .map(({ tensor }) => tensor.replace(/\.weight$/, '')),
  ]
  const touched = named.find((module) => {
    return isHeadModule(module)
      ? !tensors.has(base.names.locate(`${module}.weight`))
      : isEmbeddingModule(module) && !hasHead
  })
  if (touched === undefined) return
  const type = base.config?.model_type
  throw new MismatchError({
    where: touched,
    what: `lowrank does not know which weights are tied to this embedding in models of ${type === undefined ? 'no type in config.json' : `the type '${type}'`}`,
    expected: '"tie_word_embeddings": false in config.json, or keep',
    hint: 'keep changes the one stored weight for all its uses',
  })
}
