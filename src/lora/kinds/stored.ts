// Parts that hold values instead of factors. The bytes of a file are decoded only when somebody asks for the numbers.

import {
  decodeWeights,
  encodeWeights,
  requireWeightDtype,
  type TensorDtype,
  type WeightDtype,
} from '../../core/base/dtype.js'
import { ConfigError, ShapeError } from '../../core/base/errors.js'
import { checkArgument, checkOptions, INTEGER, isObject, kind, listOf, STRING } from '../../core/base/options.js'
import { checkTensor, elementCount, type FloatArray, formatShape, type Tensor } from '../../core/base/tensor.js'
import { where } from '../factors.js'
import { REPLACEMENT_OPTIONS } from '../gen/options.js'
import { moduleOf, Part, rowsName, type StoredTensor } from '../part.js'

export type { StoredTensor } from '../part.js'

/** Bytes as in a file, or numbers. Numbers are saved in the precision that they have. */
export type StoredValues = StoredTensor | Tensor<FloatArray>

const VALUES = kind('{ data: Float32Array | Float64Array, shape }, or { dtype, data: Uint8Array, shape }', (value) => {
  if (!isObject(value) || !listOf(INTEGER).accepts(value.shape)) return false
  const { data, dtype } = value
  return data instanceof Uint8Array ? typeof dtype === 'string' : ArrayBuffer.isView(data)
})

const TOKENS = listOf(INTEGER)

abstract class StoredPart extends Part {
  readonly name: string
  /** The type that the values have in the file. */
  readonly dtype: TensorDtype
  /** Shape of the values. */
  readonly shape: readonly number[]
  #bytes: Uint8Array | undefined
  #weight: Tensor<FloatArray> | undefined

  protected constructor(name: string, values: StoredValues) {
    super()
    checkArgument(name, STRING, 'name')
    checkArgument(values, VALUES, where(name, 'values'))
    this.name = name
    this.shape = Object.freeze([...values.shape])
    if (values.data instanceof Uint8Array) {
      this.dtype = (values as StoredTensor).dtype
      this.#bytes = values.data
      return
    }
    const numbers = values as Tensor<FloatArray>
    checkTensor(numbers, where(name, 'weight'))
    this.dtype = numbers.data instanceof Float64Array ? 'fp64' : 'fp32'
    this.#weight = { data: numbers.data.slice() as FloatArray, shape: this.shape }
  }

  /** The values as bytes, as they were read from a file or will be saved. */
  get data(): Uint8Array {
    if (this.#weight === undefined) return this.#bytes!
    // Return a copy, because training may go on while the bytes wait to be written.
    return encodeWeights(this.#weight.data, this.dtype as WeightDtype).slice()
  }

  /**
   * The values. This is not a copy: if you change them, the part changes.
   *
   * @throws UnsupportedError if the values are not floats of 16 to 64 bits
   */
  get weight(): Tensor<FloatArray> {
    if (this.#weight !== undefined) return this.#weight
    const dtype = requireWeightDtype(
      this.dtype,
      where(this.name, 'weight'),
      'values of this type cannot be computed with',
    )
    this.#weight = { data: decodeWeights(this.#bytes!, dtype), shape: this.shape }
    this.#bytes = undefined
    return this.#weight
  }

  get tensors(): { readonly weight: StoredTensor } {
    const { dtype, shape, data } = this
    return { weight: { dtype, shape, data } }
  }

  /** The number of elements. */
  override totalParams(): number {
    return elementCount(this.shape)
  }
}

/** How a replaced tensor is kept. */
export interface ReplacementOptions {
  /** False if the tensor is only a copy of the base's, which counts as not trained. Default true. */
  isTrained?: boolean | undefined
  /** The tensor's name in the adapter's file. Default: the name of the part. */
  key?: string | undefined
}

/** A whole tensor that replaces a tensor of the base, or a new tensor, such as a classification head. */
export class Replacement extends StoredPart {
  readonly kind = 'replacement'
  /**
   * False if the tensor is only a copy of the base's, saved because the vocabulary was resized or the embedding is
   * adapted.
   */
  readonly isTrained: boolean
  /** The tensor's name in the adapter's file. It can differ from the base's name if other parts wrap the module. */
  readonly key: string

  /**
   * @param name the tensor's name, as in `classifier.weight`
   * @throws ShapeError if shape and values disagree, ConfigError if an argument is not valid
   */
  constructor(name: string, values: StoredValues, options: ReplacementOptions = {}) {
    super(name, values)
    checkOptions(options, 'Replacement', REPLACEMENT_OPTIONS)
    const { isTrained = true, key = name } = options
    this.isTrained = isTrained
    this.key = key
  }

  override get module(): string {
    return moduleOf(this.name)
  }
}

/** Rows (n, D) that replace some rows of an embedding (V, D). */
export class TokenRows extends StoredPart {
  readonly kind = 'token-rows'
  /** Which rows of the embedding are replaced, in the order of the rows here. */
  readonly indices: readonly number[]
  readonly #module: string

  /**
   * @param module the embedding, as in `model.embed_tokens`
   * @param indices n different tokens
   * @param rows (n, D)
   * @throws ShapeError if the numbers of rows and tokens differ, ConfigError if a token is not valid or given twice
   */
  constructor(module: string, indices: readonly number[], rows: StoredValues) {
    checkArgument(module, STRING, 'module')
    checkArgument(indices, TOKENS, 'indices')
    super(rowsName(module), rows)
    this.#module = module
    this.indices = Object.freeze([...indices])
    if (indices.some((token) => token < 0) || new Set(indices).size < indices.length) {
      throw new ConfigError({ where: this.name, what: 'not valid as tokens', expected: 'different indices of rows' })
    }
    if (rows.shape.length === 2 && rows.shape[0] === indices.length) return
    throw new ShapeError({
      where: this.name,
      what: 'wrong shape for the tokens',
      expected: formatShape([indices.length, 'features']),
      got: formatShape(rows.shape),
    })
  }

  /** The embedding, as in `model.embed_tokens`. */
  override get module(): string {
    return this.#module
  }
}
