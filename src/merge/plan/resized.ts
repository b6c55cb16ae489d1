// Grown vocabularies: after resize_token_embeddings PEFT saves the embeddings whole. They take the base's place with as
// many rows as they have, and layers on them fit their shape.

import { MismatchError } from '../../base/errors.js'
import { formatShape } from '../../base/tensor.js'
import type { CheckpointTensor } from '../../formats/checkpoint.js'
import type { BaseReplacement } from './adapters.js'
import type { BaseModel } from './base-model.js'
import { groupOf } from './names/ties.js'
import { isVocabularyModule } from './names/vocabulary.js'

/** A base, with the vocabulary that adapters give it. */
interface ResizedBase {
  readonly base: BaseModel
  /** Number of rows; undefined where the base's stays. */
  readonly vocabulary: number | undefined
}

/** @throws MismatchError where the embeddings would have different numbers of rows */
export function resizedBase(base: BaseModel, replacements: readonly BaseReplacement[]): ResizedBase {
  const { checkpoint, names, ties } = base
  const tensors = new Map<string, CheckpointTensor>(checkpoint.tensors)
  const sizes = new Map<string, readonly number[]>()
  for (const { tensor, info, rows } of replacements) {
    const name = names.locate(tensor)
    const stored = tensors.get(name) ?? tensors.get(groupOf(ties, name)?.stored ?? name)
    if (rows !== undefined || stored === undefined || !isVocabulary(tensor)) continue
    const [[count, ...rest], [own, ...others]] = [info.shape, stored.info.shape]
    if (count === own || rest.join() !== others.join()) continue
    for (const member of groupOf(ties, name)?.members ?? [name]) if (tensors.has(member)) sizes.set(member, info.shape)
  }
  if (sizes.size === 0) return { base, vocabulary: undefined }
  for (const [name, shape] of sizes) {
    const tensor = tensors.get(name)!
    tensors.set(name, { ...tensor, info: { ...tensor.info, shape } })
  }
  const [[first, [vocabulary]]] = sizes
  const before = checkpoint.tensors.get(first)!.info.shape[0]
  for (const [name, { info }] of tensors) {
    if (!isVocabulary(name) || info.shape[0] === vocabulary) continue
    // Tables of another size before, such as those of positions, are none of the vocabulary.
    if (!sizes.has(name) && info.shape[0] !== before) continue
    throw new MismatchError({
      where: name,
      what: `the adapter gives ${first} another number of rows, but not this tensor`,
      expected: formatShape([vocabulary, ...info.shape.slice(1)]),
      got: formatShape(info.shape),
      hint: 'Save the adapter with all embeddings that resize_token_embeddings has changed: save_embedding_layers=True',
    })
  }
  return { base: { ...base, checkpoint: { ...checkpoint, tensors } }, vocabulary }
}

function isVocabulary(tensor: string): boolean {
  return /\.(weight|bias)$/.test(tensor) && isVocabularyModule(tensor.replace(/\.(weight|bias)$/, ''))
}
