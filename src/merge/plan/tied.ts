// Tied embeddings: one weight read as input and as output embedding. The user has to say what a layer on one of the two
// means.

import { MismatchError } from '../../base/errors.js'
import { isEmbeddingModule, isHeadModule } from '../../peft/tied.js'
import type { LayerFactors, MergeParts } from './adapters.js'
import type { BaseModel } from './base-model.js'
import { groupOf, type TieGroup } from './names/ties.js'

/**
 * The treatment of tied embeddings that an adapter changes. `refuse`: an error. `untie`: the output embedding gets a
 * weight of its own and config.json says so. `keep`: the one weight changes for both uses.
 */
export type TiedPolicy = 'refuse' | 'untie' | 'keep'

interface Touched {
  readonly group: TieGroup
  readonly tensor: string
}

export function tensorOf({ name, tensor }: LayerFactors, { names }: Pick<BaseModel, 'names'>): string {
  return names.locate(`${name}.${tensor}`)
}

/** Rows for both uses, and layers of both alike, are none. */
export function partedTies({ layers, replacements }: MergeParts, base: BaseModel): Touched[] {
  return touchedTies(
    [
      ...layers.filter(({ isTied }) => !isTied).map((layer) => tensorOf(layer, base)),
      ...replacements
        .filter((own) => !own.isTied && !base.unchanged.has(own))
        .map(({ tensor }) => base.names.locate(tensor)),
    ],
    base,
  )
}

/** Ties with a layer, and those of which a whole tensor or rows for one use are replaced. */
export function untiedTies({ layers, replacements }: MergeParts, base: BaseModel): TieGroup[] {
  const parting = replacements.filter(({ rows, isTied }) => rows === undefined || !isTied)
  const touched = touchedTies(
    [...layers.map((layer) => tensorOf(layer, base)), ...parting.map(({ tensor }) => base.names.locate(tensor))],
    base,
  )
  const paths = new Set(touched.map(({ group }) => group.path.join('.')))
  // config.json ties all of a part or none.
  return base.ties.groups.filter(({ path }) => paths.has(path.join('.')))
}

function touchedTies(tensors: readonly string[], { ties }: BaseModel): Touched[] {
  return tensors.flatMap((tensor) => {
    const group = groupOf(ties, tensor)
    return group === undefined || group.isBias ? [] : [{ group, tensor }]
  })
}

/** Refuses to guess where the model's type is not known: embeddings whose partner may be tied to them. */
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
    what:
      type === undefined
        ? 'the base has no config.json with a model_type, so lowrank does not know which weights are tied to this embedding'
        : `lowrank does not know which weights are tied to this embedding in models of the type '${type}'`,
    expected: '"tie_word_embeddings": false in config.json, or keep',
    hint: 'keep changes the one stored weight for all its uses',
  })
}

export function tiedError({ group, tensor }: Touched, { checkpoint }: BaseModel): MismatchError {
  const { members, stored } = group
  // The member that is read from the other one is the head, or a part's own embedding.
  const where = tensor === members[0] ? members[members.length - 1] : tensor
  const others = members.filter((name) => name !== where)
  return new MismatchError({
    where,
    what: checkpoint.tensors.has(where)
      ? `config.json ties it to ${others.join(' and ')}, so that loaders would use one weight for both`
      : `the base stores no such weight: it is tied to ${stored}`,
    expected: 'a choice for tied embeddings: untie or keep',
    hint:
      'untie writes the output embedding as a weight of its own and sets tie_word_embeddings to false, which gives what the ' +
      'adapter was trained for; keep changes the one weight for both uses',
  })
}
