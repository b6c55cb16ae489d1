// An adapted convolution, as PEFT has it: A (r, in, *kernel) moves like the base's, B (d, r/groups, 1…) has kernel 1.
// Flattened, they are factors of the base's weight (d, in·K), so that a linear layer holds them.

import { ShapeError, UnsupportedError } from '../../base/errors.js'
import { checkTensor, elementCount, type FloatArray, formatShape, type Matrix, type Tensor } from '../../base/tensor.js'
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
  /** Sizes of the kernel: one to three. */
  readonly kernel: readonly number[]
  /** How many parts the channels fall into, in and out; 1 for an ordinary convolution. */
  readonly groups: number
  /** A grouped convolution's outputs are no rows of the linear layer. */
  readonly #vectors: { magnitude: FloatArray | undefined; biasB: FloatArray | undefined } | undefined

  /**
   * A layer from copies of trained factors, in evaluation mode.
   *
   * @param weightA (r, in, *kernel)
   * @param weightB (d, r/groups, 1…), as many dimensions
   * @throws ShapeError when the shapes disagree, or r, in or d is no multiple of the groups; else as {@link
   *   LoraLayer.fromFactors}
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
    const own = configForLayer(resolveConfigOf(config, rank), name)
    const a: Matrix = { data: weightA.data, shape: [rank, channels * elementCount(kernel)] }
    const b: Matrix = { data: weightB.data, shape: [d / groups, rank] }
    const isGrouped = groups > 1
    // So many rows has the weight (d, in/groups·K) when it is read as (d/groups, in·K).
    const held = isGrouped ? { ...own, useDora: false, loraBias: false } : own
    super(LoraLayer.fromFactors(a, b, held, name, isGrouped ? {} : vectors), own)
    if (isGrouped) this.#vectors = layerVectors(new Factors(a, { ...b, shape: [d, rank] }, false, vectors), own, name)
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

  /** @internal The same factors as a linear layer over channels; undefined for a larger kernel, or several groups. */
  get pointwise(): LoraLayer | undefined {
    return this.groups === 1 && this.kernel.every((size) => size === 1) ? this.linear : undefined
  }

  /** Output channels. */
  get d(): number {
    return this.linear.d * this.groups
  }

  /** Columns of A: input channels times the kernel's elements. */
  get k(): number {
    return this.linear.k
  }

  /** A (r, in, *kernel), the layer's own: its data may be edited in place. */
  get weightA(): Tensor<FloatArray> {
    return { data: this.linear.weightA.data, shape: [this.rank, this.channels, ...this.kernel] }
  }

  /** B (d, r/groups, 1…), the layer's own. */
  get weightB(): Tensor<FloatArray> {
    const { data } = this.linear.weightB
    return { data, shape: [this.d, this.rank / this.groups, ...this.kernel.map(() => 1)] }
  }

  /** DoRA's m (d), the layer's own. */
  override get magnitude(): FloatArray | undefined {
    return (this.#vectors ?? this.linear).magnitude
  }

  /** The bias of B (d), the layer's own; s·biasB is added to the output. */
  get biasB(): FloatArray | undefined {
    return (this.#vectors ?? this.linear).biasB
  }

  /**
   * W + s·B·A of a weight W (d, in, *kernel), with DoRA's magnitude, a new tensor, as PEFT's merge makes it: also for a
   * dilated base, whose A is not dilated in PEFT.
   *
   * @throws UnsupportedError for a grouped convolution, ShapeError when the weight has another shape
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
