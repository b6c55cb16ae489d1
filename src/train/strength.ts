// A part of what a new adapter has learned may do better than all of it. For LoRA, a part is a smaller alpha.

import { LoraAdapter } from '../lora/adapter.js'

/** Parts of the change that are tried beside all of it. */
export const WEAKER: readonly number[] = [1 / 2, 1 / 4]

/** True for plain LoRA that changes nothing yet: a smaller alpha is then a smaller change, and 0 is the base. */
export function canBeWeaker(adapter: LoraAdapter): boolean {
  const layers = adapter.parts('linear')
  const isPlain = layers.length === adapter.size && Object.keys(adapter.config.alphaPattern).length === 0
  return isPlain && layers.every(({ weightB, magnitude }) => !magnitude && weightB.data.every((value) => value === 0))
}

/** The factors with another change: each B is multiplied. */
export function weaker(names: readonly string[], factors: readonly Float32Array[], strength: number): Float32Array[] {
  return factors.map((values, i) => (names[i].endsWith('.B') ? values.map((value) => value * strength) : values))
}

/** A copy of an adapter of linear layers with a smaller alpha. */
export function withStrength(adapter: LoraAdapter, strength: number): LoraAdapter {
  const { config, chatTemplate, prompts, labels, problemType, trainedOn } = adapter
  const copy = new LoraAdapter({ ...config, alpha: config.alpha * strength })
  for (const { name, weightA, weightB } of adapter.parts('linear')) copy.addFactors(name, weightA, weightB)
  return Object.assign(copy, { chatTemplate, prompts, labels, problemType, trainedOn })
}
