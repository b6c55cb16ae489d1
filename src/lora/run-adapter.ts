// Adapters as runs use them: a whole LoraAdapter, or only the values of its linear layers, which need none of the code
// that computes with layers.

import type { Matrix } from '../core/base/tensor.js'
import type { AdapterPart, BaseRecord, LoraAdapter } from './adapter.js'
import { type LoraConfig, scalingOf } from './config.js'
import { changesBase } from './init/inits.js'
import type { LoraLayer } from './layer.js'
import { ADAPTERS, type PartView } from './part.js'

export type LinearValues = Pick<
  LoraLayer,
  'kind' | 'name' | 'd' | 'k' | 'rank' | 'scaling' | 'weightA' | 'weightB' | 'magnitude' | 'biasB'
>

export type RunPart = LinearValues | Exclude<AdapterPart, LoraLayer>

export interface RunAdapter {
  readonly config: LoraConfig
  readonly isPlain?: boolean
  readonly size: number
  /** See {@link LoraAdapter.chatTemplate}. */
  readonly chatTemplate: string | undefined
  /** See {@link LoraAdapter.prompts}. */
  readonly prompts: Readonly<Record<string, string>> | undefined
  readonly trainedOn: BaseRecord | undefined
  names(): string[]
  get(name: string): RunPart | undefined
  parts(): readonly RunPart[]
  only(names: ReadonlySet<string>): RunAdapter
}

export function isAdapter(value: unknown): value is LoraAdapter {
  return ADAPTERS.has(value as object)
}

/** Says whether an adapter is plain LoRA: linear layers without magnitudes or biases of B, over an unchanged base. */
export function isPlain(adapter: { readonly config: LoraConfig; parts(): readonly PartView[] }): boolean {
  if (changesBase(adapter.config.init)) return false
  return adapter.parts().every(({ kind, tensors }) => {
    return kind === 'linear' && tensors.magnitude === undefined && tensors.biasB === undefined
  })
}

/** Makes a layer from A (r, k) and B (d, r), which are not copied, and the layer's config. */
export function linearValues(name: string, config: LoraConfig, weightA: Matrix, weightB: Matrix): LinearValues {
  const [d, k] = [weightB.shape[0], weightA.shape[1]]
  const none = { magnitude: undefined, biasB: undefined }
  return { kind: 'linear', name, d, k, rank: config.rank, scaling: scalingOf(config), weightA, weightB, ...none }
}

/** Makes a plain LoRA that is only used for a run. Callers never see it. */
export function plainAdapter(
  about: Pick<RunAdapter, 'config' | 'chatTemplate' | 'prompts' | 'trainedOn'>,
  layers: readonly LinearValues[],
): RunAdapter {
  const adapter: RunAdapter = {
    ...about,
    isPlain: true,
    size: layers.length,
    names: () => layers.map(({ name }) => name),
    get: (name) => layers.find((layer) => layer.name === name),
    parts: () => layers,
    only: (names) =>
      plainAdapter(
        about,
        layers.filter(({ name }) => names.has(name)),
      ),
  }
  ADAPTERS.add(adapter)
  return adapter
}
