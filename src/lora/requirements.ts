// Refuses adapters that a use cannot handle, and names the reason.

import { MismatchError, UnsupportedError } from '../core/base/errors.js'
import type { LoraConfig } from './config.js'
import { changesBase, isComputedFromBase } from './init/inits.js'
import { type PartKind, type PartView, tensorsOf } from './part.js'

export type Handled = PartKind | 'magnitude' | 'biasB'

const MEANINGS: Readonly<Record<Handled, string>> = {
  linear: 'linear layers',
  magnitude: 'magnitudes of DoRA (use_dora)',
  biasB: 'biases of B (lora_bias)',
  embedding: 'adapted embeddings',
  convolution: 'adapted convolutions',
  parameter: 'adapted parameters (target_parameters)',
  replacement: 'whole tensors (modules_to_save, bias)',
  'token-rows': 'rows of tokens (trainable_token_indices)',
}

interface AnyAdapter {
  readonly config: LoraConfig
  parts(): readonly PartView[]
}

/** Throws UnsupportedError if the adapter's init changed the base. `use` is its intended use, such as `training`. */
export function requireUnchangedBase({ config }: Pick<AnyAdapter, 'config'>, use: string): void {
  if (!changesBase(config.init)) return
  throw new UnsupportedError({
    where: 'init',
    what: `an adapter that was initialized with ${config.init}, which changed the base weights, cannot be used for ${use}`,
    hint: isComputedFromBase(config.init)
      ? 'Turn it into plain LoRA first: `lowrank to-plain` (toPlain)'
      : 'Turn it into plain LoRA first, with the adapter from before training: `lowrank to-plain --initial DIR` (toPlain)',
  })
}

/** Throws UnsupportedError if the adapter has a kind of part, or a vector beside its factors, not in `handled`. */
export function requireHandled(adapter: AnyAdapter, handled: readonly Handled[], use: string): void {
  requireUnchangedBase(adapter, use)
  const unhandled = unhandledPart(adapter, handled)
  if (unhandled === undefined) return
  const { name: where, meaning, expected } = unhandled
  throw new UnsupportedError({ where, what: `${meaning} are not implemented for ${use}`, expected })
}

export function unhandledPart(
  adapter: AnyAdapter,
  handled: readonly Handled[],
): { name: string; meaning: string; expected: string } | undefined {
  const expected = handled.map((need) => MEANINGS[need]).join(', ')
  for (const part of adapter.parts()) {
    const vectors = tensorsOf(part).flatMap(([role]) => (role === 'magnitude' || role === 'biasB' ? [role] : []))
    const unhandled = [part.kind, ...vectors].find((need) => !handled.includes(need))
    if (unhandled === undefined) continue
    return { name: part.name, meaning: MEANINGS[unhandled], expected }
  }
  return undefined
}

export function requireLabelCount(labels: readonly string[] | undefined, count: number | undefined): void {
  if (labels === undefined || count === undefined || labels.length === count) return
  const what = 'the adapter does not have as many labels as its head has outputs'
  throw new MismatchError({ where: 'labels', what, expected: String(count), got: labels.join(', ') })
}

/**
 * Checks a new adapter's config. Throws UnsupportedError with the setting that asks for more than plain linear layers.
 */
export function requirePlainConfig(config: LoraConfig, use: string): void {
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
