// The members that all parts of an adapter have. `PartView` describes parts in memory and in files alike.

import type { FloatDtype, TensorDtype } from '../core/base/dtype.js'
import { NumericError } from '../core/base/errors.js'
import { elementCount, type FloatArray, type Shaped, type Tensor } from '../core/base/tensor.js'
import { type LoraConfig, scalingOf } from './config.js'

/**
 * The kind of a part says what it changes, and how:
 * - `linear`: adds s·B·A to a weight (d, k)
 * - `embedding`: adds s·(B·A)ᵀ to an embedding (V, D)
 * - `convolution`: adds s·B·A to a kernel (d, in/groups, *kernel)
 * - `parameter`: adds s·B·A to each matrix of a parameter that is not a module's `weight`, mostly the stacked weights
 * (E,
 *   d, k) of experts
 * - `replacement`: replaces a whole tensor, or adds a tensor that the base does not have, such as a new head
 * - `token-rows`: replaces some rows of an embedding
 *
 * DoRA and biases of B are not separate kinds: such a part has an additional tensor `magnitude` or `biasB`.
 */
export type PartKind = 'linear' | 'embedding' | 'convolution' | 'parameter' | 'replacement' | 'token-rows'

/** The role of a tensor in its part: a factor, a vector beside the factors, or values that replace the base's. */
export type TensorRole = 'weightA' | 'weightB' | 'magnitude' | 'biasB' | 'weight'

/** The tensors of a part that has factors. */
export interface FactorTensors<T extends Shaped> {
  /** A: (r, k); for an embedding (r, V), a convolution (r, in, *kernel), experts (E·r, k). */
  readonly weightA: T
  /** B: (d, r); for an embedding (D, r), a convolution (d, r/groups, 1…), experts (d, r·E). */
  readonly weightB: T
  /** DoRA's magnitude m, a number for each output feature. */
  readonly magnitude?: T | undefined
  /** The bias of B (d). */
  readonly biasB?: T | undefined
}

/** A part with factors, described by its shapes. */
export interface FactorView<T extends Shaped> {
  readonly kind: 'linear' | 'embedding' | 'convolution'
  readonly name: string
  readonly module: string
  readonly config: LoraConfig
  readonly tensors: FactorTensors<T>
}

export interface ParameterView<T extends Shaped> extends Omit<FactorView<T>, 'kind'> {
  readonly kind: 'parameter'
  /** E, the number of experts, at least 1. */
  readonly experts: number
}

export interface ReplacementView<T extends Shaped> {
  readonly kind: 'replacement'
  /** The tensor's name in the base. */
  readonly name: string
  readonly module: string
  /** The tensor's name in the adapter's file. It can differ from the base's name if other parts wrap the module. */
  readonly key: string
  /** False for a mere copy of the base's tensor, saved because of a resized vocabulary or an adapted embedding. */
  readonly isTrained: boolean
  readonly tensors: { readonly weight: T }
}

/** Replaced rows of an embedding, described by their shape. */
export interface TokenRowsView<T extends Shaped> {
  readonly kind: 'token-rows'
  readonly name: string
  readonly module: string
  /** Which rows of the embedding are replaced, in the order of the tensor's rows. */
  readonly indices: readonly number[]
  /** (n, D) */
  readonly tensors: { readonly weight: T }
}

/** A part of an adapter, in memory or in a file. */
export type PartView<Factor extends Shaped = Shaped, Stored extends Shaped = Factor> =
  | FactorView<Factor>
  | ParameterView<Factor>
  | ReplacementView<Stored>
  | TokenRowsView<Stored>

/** A part with its values. `dtype` is the type that a layer is saved in. */
export type PartValues = PartView<Tensor<FloatArray>, StoredTensor> & { readonly dtype?: TensorDtype | undefined }

/** A tensor as a file holds it: little-endian, row-major. */
export interface StoredTensor {
  readonly dtype: TensorDtype
  readonly shape: readonly number[]
  readonly data: Uint8Array
}

export function tensorsOf<T extends Shaped>(part: {
  readonly tensors: { readonly [role in TensorRole]?: T | undefined }
}): [role: TensorRole, tensor: T][] {
  return Object.entries(part.tensors).filter(([, tensor]) => tensor !== undefined) as [TensorRole, T][]
}

/** Counts the numbers that are trained. Copies of the base are not, and neither is MiCA's B, which never changes. */
export function trainableParams(part: PartView): number {
  if (part.kind === 'replacement' && !part.isTrained) return 0
  const isMica = 'config' in part && part.config.init === 'mica'
  return tensorsOf(part).reduce((sum, [role, { shape }]) => {
    return sum + (isMica && role === 'weightB' ? 0 : elementCount(shape))
  }, 0)
}

/** A head's outputs: scores of labels that exclude each other, scores of separate labels, or quantities. */
export type ProblemType = (typeof PROBLEM_TYPES)[number]

export const PROBLEM_TYPES = ['single_label_classification', 'multi_label_classification', 'regression'] as const

export function notFinite(location: string): NumericError {
  return new NumericError({ where: location, what: 'holds a value that is not finite' })
}

/**
 * Names the part that replaces rows of an embedding. It is not the embedding's name, because that can be a part too.
 */
export function rowsName(module: string): string {
  return `${module}[tokens]`
}

/** All adapters. With this set, code that only runs adapters can recognize them without importing their class. */
export const ADAPTERS = new WeakSet<object>()

export function moduleOf(name: string): string {
  return name.slice(0, Math.max(0, name.lastIndexOf('.')))
}

/** A part in memory. The union of all parts is `AdapterPart`, and `kind` says which it is. */
export abstract class Part {
  /** The kind of the part. */
  abstract readonly kind: PartKind
  /** The part's name in its adapter: the name of a module or a tensor. Empty if the part is not in an adapter. */
  abstract readonly name: string
  /**
   * The shape of the weight that the part changes: (d, k), (V, D), (d, in/groups, *kernel) or (E, d, k); or the shape
   * of the values that replace the base's.
   */
  abstract readonly shape: readonly number[]
  /** The tensors of the part by role. */
  abstract readonly tensors: PartView<Tensor<FloatArray>, Shaped>['tensors']
  /** The module of the base that the part changes. */
  get module(): string {
    return this.name
  }

  /** Counts the numbers that are trained. */
  trainableParams(): number {
    return trainableParams(this as unknown as PartView)
  }

  /** Counts the numbers of the base's weight and of the part that adapts it. */
  totalParams(): number {
    const tensors = tensorsOf(this as unknown as PartView)
    return tensors.reduce((sum, [, { shape }]) => sum + elementCount(shape), elementCount(this.shape))
  }

  /** Returns trainableParams / totalParams. */
  compressionRatio(): number {
    return this.trainableParams() / this.totalParams()
  }
}

/** A part that has factors. */
export abstract class FactorPart extends Part {
  /** The part's settings, with the rank and alpha that the config's patterns give its name. */
  abstract readonly config: LoraConfig
  /** The type that the part is saved in by default: the type in the file that it was read from, or else fp32. */
  dtype: FloatDtype = 'fp32'

  /** r, the number of rows of A. For experts, the number of rows of each expert's A. */
  get rank(): number {
    return this.config.rank
  }

  /** s, by which B·A is multiplied. */
  get scaling(): number {
    return scalingOf(this.config)
  }
}

/** Returns a part's tensors, without the vectors that it does not have. */
export function factorTensors(
  weightA: Tensor<FloatArray>,
  weightB: Tensor<FloatArray>,
  magnitude: FloatArray | undefined,
  biasB?: FloatArray | undefined,
): FactorTensors<Tensor<FloatArray>> {
  const vector = (data: FloatArray) => ({ data, shape: [data.length] })
  return {
    weightA,
    weightB,
    ...(magnitude && { magnitude: vector(magnitude) }),
    ...(biasB && { biasB: vector(biasB) }),
  }
}
