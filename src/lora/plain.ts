// Which parts of an adapter are more than plain linear layers, y = x·(W + s·B·A)ᵀ, and the refusal of them by name where only
// those are handled.

import { UnsupportedError } from '../base/errors.js'
import type { LoraConfig } from './config.js'

export type PartKind =
  | 'linear'
  | 'dora'
  | 'lora-bias'
  | 'embedding'
  | 'convolution'
  | 'parameter'
  | 'replacement'
  | 'token-rows'

/** A module of the base that an adapter changes, or a tensor that it replaces. */
export interface AdapterPart {
  readonly name: string
  readonly kind: PartKind
}

const MEANINGS: Readonly<Record<PartKind, string>> = {
  linear: 'a plain linear layer',
  dora: 'a DoRA layer (use_dora)',
  'lora-bias': 'a layer with a bias of B (lora_bias)',
  embedding: 'an adapted embedding',
  convolution: 'an adapted convolution',
  parameter: 'an adapted parameter (target_parameters)',
  replacement: 'a tensor that replaces the base’s (modules_to_save, bias)',
  'token-rows': 'rows of an embedding (trainable_token_indices)',
}

/**
 * @param use what would be done with the adapter, as in `training`
 * @throws UnsupportedError naming the first part that is not a plain linear layer
 */
export function requirePlain(adapter: { parts(): readonly AdapterPart[] }, use: string): void {
  requireKinds(adapter, ['linear'], use)
}

/** The same where more kinds than plain linear layers are handled. */
export function requireKinds(
  adapter: { parts(): readonly AdapterPart[] },
  kinds: readonly PartKind[],
  use: string,
): void {
  const part = adapter.parts().find(({ kind }) => !kinds.includes(kind))
  if (part === undefined) return
  throw new UnsupportedError({
    where: part.name,
    what: `${MEANINGS[part.kind]} is not implemented for ${use}`,
    expected: kinds.map((kind) => MEANINGS[kind]).join(', '),
  })
}

/**
 * The same for an adapter to be made.
 *
 * @throws UnsupportedError naming the setting that asks for more than plain linear layers
 */
export function requirePlainConfig(config: LoraConfig, use: string): void {
  const { useDora, loraBias, bias, modulesToSave, targetParameters, trainableTokenIndices } = config
  const settings: [setting: string, isOn: boolean][] = [
    ['useDora', useDora],
    ['loraBias', loraBias],
    ['bias', bias !== 'none'],
    ['modulesToSave', modulesToSave.length > 0],
    ['targetParameters', targetParameters.length > 0],
    ['trainableTokenIndices', trainableTokenIndices !== undefined],
  ]
  const setting = settings.find(([, isOn]) => isOn)?.[0]
  if (setting !== undefined) throw new UnsupportedError({ where: setting, what: `not implemented for ${use}` })
}
