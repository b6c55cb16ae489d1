// An adapted convolution, as in PEFT: A (r, in, *kernel) is a convolution like the base's, and B (d, r/groups, 1…) has
// kernel size 1. Flattened, they are factors of the base's weight (d, in·K), so a linear layer can hold them.

import { ShapeError, UnsupportedError } from '../../core/base/errors.js'
import {
  checkTensor,
  elementCount,
  type FloatArray,
  formatShape,
  type Matrix,
  type Tensor,
} from '../../core/base/tensor.js'
import { configForLayer, type LoraConfigInput, resolveConfigOf } from '../config.js'
import { Factors, type LayerVectors, layerVectors, where } from '../factors.js'
import { LoraLayer } from '../layer.js'
import { type FactorTensors, factorTensors } from '../part.js'
import { convolutionShape, groupsRefusal } from './convolution-factors.js'
import { LinearBacked } from './linear-backed.js'

/**
 * An adapted convolution of one, two or three dimensions, whose weight is W + s·B·A: y = conv(x, W) + s·conv(conv(x,
 * A), B). A has shape (r, in, *kernel), B (d, r/groups, 1…), W (d, in/groups, *kernel).
 */
export class ConvolutionLora extends LinearBacked {
  readonly kind = 'convolution'
  /** Input channels, of all groups. */
  readonly channels: number
  /** The kernel's size in each of its one to three dimensions. */
  readonly kernel: readonly number[]
  /** The number of groups that the input and output channels are divided into; 1 for an ordinary convolution. */
  readonly groups: number
  /** Set only for a grouped convolution, whose outputs do not correspond to rows of the linear layer. */
  readonly #vectors: { magnitude: FloatArray | undefined; biasB: FloatArray | undefined } | undefined

  /**
   * Makes a layer from copies of trained factors, in evaluation mode.
   *
   * @param weightA (r, in, *kernel)
   * @param weightB (d, r/groups, 1…), with as many dimensions as weightA
   * @throws ShapeError if the shapes disagree, or if r, in or d is not a multiple of the groups. Also throws whatever
   *   {@link LoraLayer.fromFactors} throws
   */
  constructor(
    weightA: Tensor<FloatArray>,
    weightB: Tensor<FloatArray>,
    config: LoraConfigInput = {},
    name = '',
    vectors: LayerVectors = {},
  ) {
    checkTensor(weightA, where(name, 'weightA', 'ConvolutionLora'))
    checkTensor(weightB, where(name, 'weightB', 'ConvolutionLora'))
    const { rank, channels, kernel, d, groups } = convolutionShape(
      weightA.shape,
      weightB.shape,
      name || 'ConvolutionLora',
    )
    const layerConfig = configForLayer(resolveConfigOf(config, rank), name)
    const a: Matrix = { data: weightA.data, shape: [rank, channels * elementCount(kernel)] }
    const b: Matrix = { data: weightB.data, shape: [d / groups, rank] }
    const isGrouped = groups > 1
    // With groups, the weight (d, in/groups·K) is held as (d/groups, in·K). Magnitude and bias have d values, more than
    // its rows, so this class keeps them itself.
    const held = isGrouped ? { ...layerConfig, useDora: false, loraBias: false } : layerConfig
    super(LoraLayer.fromFactors(a, b, held, name, isGrouped ? {} : vectors), layerConfig)
    if (isGrouped)
      this.#vectors = layerVectors(new Factors(a, { ...b, shape: [d, rank] }, false, vectors), layerConfig, name)
    this.channels = channels
    this.kernel = kernel
    this.groups = groups
  }

  /** Shape of the weight: (d, in/groups, *kernel). */
  get shape(): readonly number[] {
    return [this.d, this.channels / this.groups, ...this.kernel]
  }

  get tensors(): FactorTensors<Tensor<FloatArray>> {
    return factorTensors(this.weightA, this.weightB, this.magnitude, this.biasB)
  }

  /**
   * @internal The factors as a linear layer over channels. Undefined if the kernel is larger than 1, or with groups.
   */
  get pointwise(): LoraLayer | undefined {
    return this.groups === 1 && this.kernel.every((size) => size === 1) ? this.linear : undefined
  }

  /** Output channels. */
  get d(): number {
    return this.linear.d * this.groups
  }

  /** Columns of A: the input channels of all groups, times the kernel's elements. */
  get k(): number {
    return this.linear.k
  }

  /** A (r, in, *kernel). This is not a copy: if you edit its data, the layer changes. */
  get weightA(): Tensor<FloatArray> {
    return { data: this.linear.weightA.data, shape: [this.rank, this.channels, ...this.kernel] }
  }

  /** B (d, r/groups, 1…). This is not a copy either. */
  get weightB(): Tensor<FloatArray> {
    const { data } = this.linear.weightB
    return { data, shape: [this.d, this.rank / this.groups, ...this.kernel.map(() => 1)] }
  }

  /** DoRA's magnitude m (d). This is not a copy either. */
  override get magnitude(): FloatArray | undefined {
    return (this.#vectors ?? this.linear).magnitude
  }

  /** The bias of B (d), not a copy. s·biasB is added to the output. */
  get biasB(): FloatArray | undefined {
    return (this.#vectors ?? this.linear).biasB
  }

  /**
   * Returns W + s·B·A for a weight W (d, in, *kernel), with DoRA's magnitude if there is one, as a new tensor. This is
   * what PEFT's merge computes, even for a dilated convolution, where PEFT does not dilate A.
   *
   * @throws UnsupportedError for a grouped convolution, ShapeError if the weight has another shape
   */
  effectiveWeight(weight: Tensor<FloatArray>): Tensor<FloatArray> {
    const location = where(this.name, 'effectiveWeight', 'ConvolutionLora')
    if (this.groups > 1) throw new UnsupportedError({ where: location, what: groupsRefusal(this.groups) })
    checkTensor(weight, location)
    const [expected, got] = [formatShape(this.shape), formatShape(weight.shape)]
    if (got !== expected) throw new ShapeError({ where: location, what: 'wrong shape', expected, got })
    return { data: this.linear.adapted({ data: weight.data, shape: [this.d, this.k] }).data, shape: this.shape }
  }
}
