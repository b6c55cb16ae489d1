// What is refused by name where only some adapters are handled: kinds of parts, vectors beside the factors, settings of the config.

import { UnsupportedError } from '../base/errors.js'
import type { LoraConfig } from './config.js'
import { changesBase, takesFromBase } from './init/inits.js'
import { type PartKind, type PartView, tensorsOf } from './part.js'

/** Something that code can handle: a kind of parts, or a vector that parts have beside their factors. */
export type Handled = PartKind | 'magnitude' | 'biasB'

/** What adapters can have where their base is a graph: in sessions, and in merges. */
export const GRAPH_PARTS: readonly Handled[] = [
  'linear',
  'magnitude',
  'biasB',
  'embedding',
  'convolution',
  'replacement',
  'token-rows',
]

const MEANINGS: Readonly<Record<Handled, string>> = {
  linear: 'a plain linear layer',
  magnitude: 'a DoRA layer (use_dora)',
  biasB: 'a layer with a bias of B (lora_bias)',
  embedding: 'an adapted embedding',
  convolution: 'an adapted convolution',
  parameter: 'an adapted parameter (target_parameters)',
  replacement: 'a tensor that replaces the base’s (modules_to_save, bias)',
  'token-rows': 'rows of an embedding (trainable_token_indices)',
}

/** An adapter in memory or its open folder. */
interface AnyAdapter {
  readonly config: LoraConfig
  parts(): readonly PartView[]
}

/**
 * @param use what would be done with the adapter, as in `training`
 * @throws UnsupportedError when the adapter belongs to a base that its initialization changed
 */
export function requireUnchangedBase({ config }: Pick<AnyAdapter, 'config'>, use: string): void {
  if (!changesBase(config.init)) return
  throw new UnsupportedError({
    where: 'init',
    what: `an adapter that was initialized with ${config.init}, which changed the base weights, cannot be used for ${use}`,
    hint: takesFromBase(config.init)
      ? 'Turn it into plain LoRA first: `lowrank to-plain` (toPlain)'
      : 'Turn it into plain LoRA first, with the adapter from before training: `lowrank to-plain --initial DIR` (toPlain)',
  })
}

/**
 * @param use what would be done with the adapter, as in `training`
 * @throws UnsupportedError naming the first part that is not a plain linear layer
 */
export function requirePlain(adapter: AnyAdapter, use: string): void {
  requireHandled(adapter, ['linear'], use)
}

/** The same where more is handled than plain linear layers: kinds of parts, and vectors beside their factors. */
export function requireHandled(adapter: AnyAdapter, handled: readonly Handled[], use: string): void {
  requireUnchangedBase(adapter, use)
  requireOwnLayers(adapter, use)
  for (const part of adapter.parts()) {
    const other = needsOf(part).find((need) => !handled.includes(need))
    if (other === undefined) continue
    throw new UnsupportedError({
      where: part.name,
      what: `${MEANINGS[other]} is not implemented for ${use}`,
      expected: handled.map((need) => MEANINGS[need]).join(', '),
    })
  }
}

/** What a part asks of those who handle it. */
function needsOf(part: PartView): Handled[] {
  const vectors = tensorsOf(part).flatMap(([role]) => (role === 'magnitude' || role === 'biasB' ? [role] : []))
  return [part.kind, ...vectors]
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
