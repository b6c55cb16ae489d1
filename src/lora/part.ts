// Members of every part of an adapter. `PartView` is the same for parts in memory and in files.

import type { FloatDtype, TensorDtype } from '../base/dtype.js'
import { NumericError } from '../base/errors.js'
import { elementCount, type FloatArray, type Shaped, type Tensor } from '../base/tensor.js'
import { type LoraConfig, scalingOf } from './config.js'

/**
 * The kinds of parts:
 * - `linear`: a weight (d, k), by s·B·A
 * - `embedding`: rows (V, D), by s·(B·A)ᵀ
 * - `convolution`: a kernel (d, in/groups, *kernel), by s·B·A
 * - `parameter`: a tensor that no module of its own reads, mostly the stacked weights (E, d, k) of experts, by s·B·A
 *   for each
 * - `replacement`: a whole tensor, by another one; or a tensor that the base does not have, as a new head
 * - `token-rows`: some rows of an embedding, by others
 *
 * DoRA and biases of B have no own kind. Such a part has an additional tensor `magnitude` or `biasB`.
 */
export type PartKind = 'linear' | 'embedding' | 'convolution' | 'parameter' | 'replacement' | 'token-rows'

/** The role of a tensor in its part: a factor, a vector beside the factors, or values that take the base's place. */
export type TensorRole = 'weightA' | 'weightB' | 'magnitude' | 'biasB' | 'weight'

/** Tensors of a part that has factors. */
export interface FactorTensors<T extends Shaped> {
  /** A: (r, k), of an embedding (r, V), of a convolution (r, in, *kernel), of experts (E·r, k). */
  readonly weightA: T
  /** B: (d, r), of an embedding (D, r), of a convolution (d, r/groups, 1…), of experts (d, r·E). */
  readonly weightB: T
  /** DoRA's m, one number for each output feature. */
  readonly magnitude?: T | undefined
  /** The bias of B (d). */
  readonly biasB?: T | undefined
}

/** A part with factors, as far as its shapes tell. */
export interface FactorView<T extends Shaped> {
  readonly kind: 'linear' | 'embedding' | 'convolution'
  readonly name: string
  readonly module: string
  /** The part's own, with its rank and alpha. */
  readonly config: LoraConfig
  readonly tensors: FactorTensors<T>
}

/** Stacked experts, as far as their shapes tell. */
export interface ParameterView<T extends Shaped> extends Omit<FactorView<T>, 'kind'> {
  readonly kind: 'parameter'
  /** E, at least 1. */
  readonly experts: number
}

/** A replaced or new tensor, without its values. */
export interface ReplacementView<T extends Shaped> {
  readonly kind: 'replacement'
  /** The base's name of the tensor. */
  readonly name: string
  readonly module: string
  /** The name in the adapter's file, which can differ from the base's where other parts wrap the module. */
  readonly key: string
  /**
   * False for a copy of the base's own tensor, saved along because the vocabulary was resized or the embedding is
   * adapted.
   */
  readonly isTrained: boolean
  readonly tensors: { readonly weight: T }
}

/** Replaced rows of an embedding, without their values. */
export interface TokenRowsView<T extends Shaped> {
  readonly kind: 'token-rows'
  readonly name: string
  readonly module: string
  /** Which rows, in the order of the tensor's. */
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

/** `dtype` is the type that a layer is saved in. */
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

/** All tensors, but for MiCA's B, which stays as it starts, and copies of the base. */
export function trainableParams(part: PartView): number {
  if (part.kind === 'replacement' && !part.isTrained) return 0
  const isMica = 'config' in part && part.config.init === 'mica'
  return tensorsOf(part).reduce((sum, [role, { shape }]) => {
    return sum + (isMica && role === 'weightB' ? 0 : elementCount(shape))
  }, 0)
}

/** Outputs of a head: scores of labels of which one holds, scores of labels each of which may hold, or quantities. */
export type ProblemType = (typeof PROBLEM_TYPES)[number]

export const PROBLEM_TYPES = ['single_label_classification', 'multi_label_classification', 'regression'] as const

export function notFinite(location: string): NumericError {
  return new NumericError({ where: location, what: 'holds a value that is not finite' })
}

/** Name of a part with rows of an embedding, which can be a part itself beside them. */
export function rowsName(module: string): string {
  return `${module}[tokens]`
}

/** All LoraAdapters: code that only runs adapters tells them by it, and not by their class. */
export const ADAPTERS = new WeakSet<object>()

export function moduleOf(name: string): string {
  return name.slice(0, Math.max(0, name.lastIndexOf('.')))
}

/** A part in memory. All of them are one union, `AdapterPart`, told apart by `kind`. */
export abstract class Part {
  /** The kind of the part. */
  abstract readonly kind: PartKind
  /** The part's own in its adapter: a module's name, or that of a tensor; empty for a part on its own. */
  abstract readonly name: string
  /**
   * Shape of the weight that the part changes: (d, k), (V, D), (d, in/groups, *kernel) or (E, d, k). For replaced
   * values: their shape.
   */
  abstract readonly shape: readonly number[]
  /** All tensors of the part, by their role. */
  abstract readonly tensors: PartView<Tensor<FloatArray>, Shaped>['tensors']
  /** The module of the base that the part changes. */
  get module(): string {
    return this.name
  }

  /** How many numbers are trained. */
  trainableParams(): number {
    return trainableParams(this as unknown as PartView)
  }

  /** How many numbers the weight and all that adapts it have. */
  totalParams(): number {
    const own = tensorsOf(this as unknown as PartView)
    return own.reduce((sum, [, { shape }]) => sum + elementCount(shape), elementCount(this.shape))
  }

  /** trainable / total */
  compressionRatio(): number {
    return this.trainableParams() / this.totalParams()
  }
}

/** A part that has factors. */
export abstract class FactorPart extends Part {
  /** The part's settings: rank and alpha are those that the config's patterns give its name. */
  abstract readonly config: LoraConfig
  /** The type that the part is saved in, unless saving names another: that of the file it came from, else fp32. */
  dtype: FloatDtype = 'fp32'

  /** r: rows of A; of experts those of each. */
  get rank(): number {
    return this.config.rank
  }

  /** s, by which the product of the factors is multiplied. */
  get scaling(): number {
    return scalingOf(this.config)
  }
}

/** Vectors that it does not have are left out. */
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
