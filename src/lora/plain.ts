// Which parts of an adapter are more than plain linear layers, y = x·(W + s·B·A)ᵀ, and the refusal of them by name where only
// those are handled.

import { UnsupportedError } from '../base/errors.js'
import type { LoraConfig } from './config.js'
import { changesBase } from './init/inits.js'

/** What a part is. DoRA layers and layers with a bias of B are linear ones with something besides. */
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

/** The kind of a linear layer with these vectors. */
export function linearKind({ magnitude, biasB }: { magnitude: unknown; biasB: unknown }): PartKind {
  if (magnitude !== undefined) return 'dora'
  return biasB === undefined ? 'linear' : 'lora-bias'
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

/** An adapter in memory or its open folder. */
interface AnyAdapter {
  readonly config: LoraConfig
  parts(): readonly AdapterPart[]
}

/**
 * @param use what would be done with the adapter, as in `training`
 * @throws UnsupportedError when the adapter belongs to a base that its initialisation changed
 */
export function requireUnchangedBase({ config }: Pick<AnyAdapter, 'config'>, use: string): void {
  if (!changesBase(config.init)) return
  throw new UnsupportedError({
    where: 'init',
    what: `an adapter that started as ${config.init}, which changed the base weights, is not implemented for ${use}`,
    hint: 'Make it plain LoRA first, with toPlain or `lowrank to-plain`',
  })
}

/**
 * @param use what would be done with the adapter, as in `training`
 * @throws UnsupportedError naming the first part that is not a plain linear layer
 */
export function requirePlain(adapter: AnyAdapter, use: string): void {
  requireKinds(adapter, ['linear'], use)
}

/** The same where more kinds than plain linear layers are handled. */
export function requireKinds(adapter: AnyAdapter, kinds: readonly PartKind[], use: string): void {
  requireUnchangedBase(adapter, use)
  requireOwnLayers(adapter, use)
  const part = adapter.parts().find(({ kind }) => !kinds.includes(kind))
  if (part === undefined) return
  throw new UnsupportedError({
    where: part.name,
    what: `${MEANINGS[part.kind]} is not implemented for ${use}`,
    expected: kinds.map((kind) => MEANINGS[kind]).join(', '),
  })
}

/** Throws UnsupportedError for a config that replicates layers of the base. */
export function requireOwnLayers({ config: { layerReplication } }: Pick<AnyAdapter, 'config'>, use: string): void {
  if (layerReplication === undefined) return
  throw new UnsupportedError({
    where: 'layer_replication',
    what: `not implemented for ${use}: layers of the adapted model share one weight of the base, but not what is added to it`,
    got: JSON.stringify(layerReplication).slice(0, 200),
  })
}

/**
 * The same for an adapter to be made.
 *
 * @throws UnsupportedError naming the setting that asks for more than plain linear layers
 */
export function requirePlainConfig(config: LoraConfig, use: string): void {
  requireOwnLayers({ config }, use)
  const { init, useDora, loraBias, bias, modulesToSave, targetParameters, trainableTokenIndices } = config
  const settings: [setting: string, isOn: boolean][] = [
    ['init', changesBase(init) || init === 'mica'], // MiCA's B stays as it is
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
