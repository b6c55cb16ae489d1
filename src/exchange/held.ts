// What a format can hold of an adapter. The rest is refused by name, with the way out.

import { UnsupportedError } from '../base/errors.js'
import type { LoraConfig } from '../lora/config.js'
import { type PartKind, type PartView, tensorsOf } from '../lora/part.js'
import { requireOwnLayers, requireUnchangedBase } from '../lora/requirements.js'

/** Kinds of parts, and vectors beside their factors. */
type Held = PartKind | 'magnitude' | 'biasB'

const MEANINGS: Readonly<Record<Held, string>> = {
  linear: 'linear layers',
  magnitude: 'magnitudes of DoRA',
  biasB: 'biases of B (lora_bias)',
  embedding: 'adapted embeddings',
  convolution: 'adapted convolutions',
  parameter: 'adapted parameters (target_parameters)',
  replacement: 'whole tensors (modules_to_save, bias)',
  'token-rows': 'rows of tokens (trainable_token_indices)',
}

/**
 * @param format its name, as in `a GGUF adapter`
 * @throws UnsupportedError naming the first part that the format cannot hold
 */
export function requireHeld(
  adapter: { readonly config: LoraConfig; parts(): readonly Pick<PartView, 'kind' | 'name' | 'tensors'>[] },
  held: readonly Held[],
  format: string,
): void {
  requireUnchangedBase(adapter, format)
  requireOwnLayers(adapter, format)
  for (const part of adapter.parts()) {
    const vectors = tensorsOf(part).flatMap(([role]) => (role === 'magnitude' || role === 'biasB' ? [role] : []))
    const needs: Held[] = [part.kind, ...vectors]
    const other = needs.find((need) => !held.includes(need))
    if (other === undefined) continue
    throw new UnsupportedError({
      where: part.name,
      what: `${format} cannot hold ${MEANINGS[other]}`,
      expected: held.map((need) => MEANINGS[need]).join(', '),
      hint: 'Merge the adapter into its base, and convert the merged model',
    })
  }
}
