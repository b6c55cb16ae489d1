// Placements: where each part of an adapter goes in a graph. They are data, which sessions, merges and training carry
// out.

import type { TensorDtype } from '../../core/base/dtype.js'
import type { LowrankError } from '../../core/base/errors.js'
import { convolutionShape } from '../../lora/kinds/convolution-factors.js'
import type { PartView } from '../../lora/part.js'
import type { LinearValues } from '../../lora/run-adapter.js'
import type { Graph } from '../../onnx/view/graph.js'
import type { Linear } from '../match/linears.js'
import type { BiasPlace, Place } from '../match/parameters.js'
import type { ExpertStack, RowOrder } from './experts.js'

/** A graph in which adapters are placed, and what its use demands of places. */
export interface PlacedModel {
  readonly graph: Graph
  readonly linears: readonly Linear[]
  readonly embeddings: readonly Linear[]
  /** The contents of config.json; may be empty. */
  readonly config: Readonly<Record<string, unknown>>
  /** Sessions feed what adapters bring, merges write it into weights or beside them, and training changes it. */
  readonly use: 'session' | 'merge' | 'training'
}

interface Named {
  readonly name: string
  readonly module: string
}

interface FactorShape extends Named {
  /** True if B has a bias (lora_bias). */
  readonly hasBias?: boolean
  /** True for DoRA. */
  readonly hasMagnitude?: boolean
}

interface ValueShape extends Named {
  readonly dtype: TensorDtype
  readonly shape: readonly number[]
}

/** What placing asks of a part: its names and shapes. */
export type PartShape =
  | (FactorShape & { readonly kind: 'linear'; readonly d: number; readonly k: number })
  | (FactorShape & { readonly kind: 'embedding'; readonly d: number; readonly k: number })
  | (FactorShape & { readonly kind: 'convolution'; readonly shape: readonly number[]; readonly groups: number })
  | (Named & { readonly kind: 'parameter'; readonly experts: number; readonly d: number; readonly k: number })
  | (ValueShape & { readonly kind: 'replacement'; readonly isTrained: boolean })
  | (ValueShape & { readonly kind: 'token-rows'; readonly indices: readonly number[] })

export type PartOf<Kind extends PartShape['kind']> = Extract<PartShape, { readonly kind: Kind }>

export interface PlacedAdapter {
  readonly parts: readonly PartShape[]
  /** PEFT's fan_in_fan_out: linear layers may be stored as (k, d). */
  readonly isConv1d: boolean
  /** Says whether the whole adapter has a part of this name, also if `parts` are some of them. */
  has(part: string): boolean
}

/** The place of factors in a linear layer, a convolution of kernel 1, or an embedding. */
export interface LayerPlacement extends Place {
  readonly kind: 'layer'
  readonly part: string
  /** The name of the layer that these rows of B are. */
  readonly name: string
  readonly linear: Linear
  /** The rows of B that belong here, in the graph's order: `d` from `start` on. */
  readonly start: number
  readonly d: number
  /** For an expert's layer, its number, and the order of the rows of B. */
  readonly expert?: number
  readonly order?: RowOrder
  /** In merges, the bias that the bias of B is added to. */
  readonly bias?: BiasPlace | undefined
}

/** The place of a convolution of any kernel, in merges. */
export interface KernelPlacement extends Place {
  readonly kind: 'kernel'
  readonly part: string
  readonly bias?: BiasPlace | undefined
}

export interface StackPlacement extends Place {
  readonly kind: 'stack'
  readonly part: string
  readonly stack: ExpertStack & { readonly isInputMajor: boolean }
  readonly order: RowOrder
}

/** The place of values that replace a weight, or some rows of it. */
export interface WeightPlacement extends Place {
  readonly kind: 'weight'
  readonly part: string
  readonly linear: Linear
  /** True if the adapter holds the weight as (k, d), not (d, k). */
  readonly isInputMajor: boolean
  /** The tokens whose rows are replaced. Undefined: all. */
  readonly tokens: readonly number[] | undefined
  /** True if the weight has to be stored as floats, because its integers cannot hold the values. */
  readonly inFloats: boolean
}

/** The place of values that replace a bias or another tensor, such as the weight of a norm. */
export interface VectorPlacement extends Place {
  readonly kind: 'vector'
  readonly part: string
  /** The linear layer whose bias it is. */
  readonly linear: Linear | undefined
  /** For a bias that is stored together with others, the first of its elements. */
  readonly start: number | undefined
  /** What the graph's values exceed PyTorch's by. */
  readonly offset: number
}

export type Placement = LayerPlacement | KernelPlacement | StackPlacement | WeightPlacement | VectorPlacement

export interface PlaceProblem {
  /** Undefined for a problem of several layers. */
  readonly part: string | undefined
  readonly error: LowrankError
}

export interface Placed {
  readonly placements: readonly Placement[]
  readonly problems: readonly PlaceProblem[]
}

/** What only the values tell. */
export interface Facts {
  /** For embeddings, the output layers with the same values. */
  readonly tied: ReadonlyMap<string, readonly string[]>
  /** Places at which a saved tensor equals the base's: see {@link copyAt}. */
  readonly copies: ReadonlySet<string>
}

export const NO_FACTS: Facts = { tied: new Map(), copies: new Set() }

export function copyAt(part: string, { output }: Linear): string {
  return `${part} ${output}`
}

type AnyPart = PartView | LinearValues

export function placedAdapter(
  adapter: { readonly config: { readonly fanInFanOut: boolean }; parts(): readonly AnyPart[] },
  parts: readonly AnyPart[] = adapter.parts(),
): PlacedAdapter {
  const names = new Set(adapter.parts().map(({ name }) => name))
  return { parts: parts.map(shapeOf), isConv1d: adapter.config.fanInFanOut, has: (part) => names.has(part) }
}

function shapeOf(part: AnyPart): PartShape {
  if (!('tensors' in part)) return { kind: 'linear', name: part.name, module: part.name, d: part.d, k: part.k }
  const { kind, name, module } = part
  if (kind === 'replacement' || kind === 'token-rows') {
    // Parts in memory would encode their values for `tensors`.
    const { dtype, shape } = ('shape' in part ? part : part.tensors.weight) as Pick<ValueShape, 'dtype' | 'shape'>
    return kind === 'replacement'
      ? { kind, name, module, dtype, shape, isTrained: part.isTrained }
      : { kind, name, module, dtype, shape, indices: part.indices }
  }
  const { weightA, weightB, biasB, magnitude } = part.tensors
  const [d, k] = [weightB.shape[0], weightA.shape[1]]
  if (kind === 'parameter') return { kind, name, module, experts: part.experts, d, k }
  const has = { hasBias: biasB !== undefined, hasMagnitude: magnitude !== undefined }
  if (kind !== 'convolution') return { kind, name, module, d, k, ...has }
  const { channels, kernel, groups, ...shape } = convolutionShape(weightA.shape, weightB.shape, name)
  return { kind, name, module, shape: [shape.d, channels, ...kernel], groups, ...has }
}
