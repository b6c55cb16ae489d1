// Tests whether logits depend on later tokens, as they do in an encoder. Graphs with a cache need no test: with a
// cache, later tokens cannot change earlier logits.

import { roleFeeds } from '../../model/inputs/roles.js'
import { checkWidth, notCausal } from '../../model/match/continues.js'
import type { Model } from '../../model/model-folder.js'
import type { Feeds, RuntimeTensor } from '../../onnx/runtime/runtime.js'
import type { TextForm } from './text-form.js'

/** Two texts that begin with the same token. */
const PROBES = [
  [1, 2],
  [1, 3],
] as const

/** Rounding and half precision may change logits by this share of the largest logit. */
const TOLERANCE = 0.02

export async function checkCausality(
  model: Pick<Model, 'vocabularySize'>,
  { roles, logits }: Pick<TextForm, 'roles' | 'logits'>,
  run: (feeds: Feeds) => Promise<Record<string, RuntimeTensor>>,
): Promise<void> {
  const firsts: ArrayLike<number>[] = []
  for (const inputIds of PROBES) {
    const feeds = roleFeeds(roles, { batch: 1, sequence: 2, inputIds, attentionMask: [1, 1] })
    const { data, dims } = (await run(feeds))[logits]
    const width = dims.at(-1) ?? 0
    checkWidth(model, width)
    if (dims.length !== 3 || dims[1] !== 2 || !(data instanceof Float32Array)) break
    firsts.push(data.subarray(0, width))
  }
  if (firsts.length < 2) return
  const [first, second] = firsts
  let [difference, largest] = [0, 0]
  for (let i = 0; i < first.length; i++) {
    difference = Math.max(difference, Math.abs(first[i] - second[i]))
    largest = Math.max(largest, Math.abs(first[i]))
  }
  if (difference <= TOLERANCE * largest) return
  throw notCausal(
    'it does not continue texts',
    'logits of a token that change with the tokens after it, as those of an encoder do',
  )
}
