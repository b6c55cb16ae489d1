// The head of a task that an adapter brings and the base has not: what it needs, and what config.json is to say of it.

import { MismatchError } from '../../base/errors.js'
import type { BaseModel } from './base-model.js'
import { type ConfigEdit, meaningOf } from './config-edit.js'
import type { AddedTensor } from './place-replacements.js'

/**
 * @param added tensors that the base does not have
 * @param allowMissing goes on without what the head needs
 * @returns undefined when the adapters bring no head
 * @throws MismatchError naming a tensor that the head needs and nobody has, unless it may be missing
 */
export function planHead(
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
      hint: 'Train with it in modules_to_save, or merge into a base that has it. With allowMissing (--allow-missing), loaders fill it with random numbers',
    })
  }
  const labelled = head.labelled.map((name) => added.get(names.locate(name))).find((tensor) => tensor !== undefined)
  const count = labelled?.info.shape[0]
  return { architecture: head.architecture, count, ...meaningOf(meanings, count) }
}
