// An adapted convolution of one, two or three dimensions, as PEFT has it: A is a convolution (r, in, *kernel) that moves like the
// base's, B one of kernel 1, (d, r/groups, 1…). Flattened, they are factors of the base's weight (d, in·K), so that a linear layer
// holds them; K is the number of a kernel's elements. A grouped convolution's A sees all channels: its change is no change of a weight.

import { ShapeError, UnsupportedError } from '../../base/errors.js'
import { Random } from '../../base/random.js'
import { checkTensor, elementCount, type FloatArray, formatShape, type Matrix, type Tensor } from '../../base/tensor.js'
import { addScaled, normOfProduct } from '../../linalg/product.js'
import { configForLayer, type LoraConfigInput, resolveConfig, resolveConfigOf } from '../config.js'
import { rowNorms } from '../dora.js'
import { addKept, dropFrom } from '../dropout.js'
import { Factors, type LayerVectors, layerVectors, noBase, noForward, where } from '../factors.js'
import { LoraLayer } from '../layer.js'
import { type FactorTensors, factorTensors } from '../part.js'
import type { PassWeights } from '../passes.js'
import { convolutionShape, groupsRefusal, newConvolution, placeOf } from './convolution-factors.js'
import {
  type ConvolutionTape,
  convolutionBackward,
  convolutionForward,
  type Movement,
  mergedForward,
  movementOf,
} from './convolution-pass.js'
import { rowsOf } from './groups.js'
import { LinearBacked } from './linear-backed.js'
import type { ConvolutionGeometry } from './windows.js'

/** Result of `backward`. */
export interface ConvolutionGradients {
  /** (r, in, *kernel) */
  weightA: Tensor<FloatArray>
  /** (d, r/groups, 1…) */
  weightB: Tensor<FloatArray>
  /** (n, in, ...input) */
  input: Tensor<FloatArray>
  /** (d), of a layer with a magnitude. */
  magnitude?: FloatArray
  /** (d), of a layer with a bias of B. */
  biasB?: FloatArray
}

/**
 * An adapted convolution of one, two or three dimensions: y = conv(x, W) + s·conv(conv(x, A), B), with the base's stride and
 * padding. A has shape (r, in, *kernel), B (d, r/groups, 1…), W (d, in/groups, *kernel).
 */
export class ConvolutionLora extends LinearBacked<ConvolutionTape & { keep: Uint8Array | undefined }> {
  readonly kind = 'convolution'
  /** Input channels, of all groups. */
  readonly channels: number
  /** Sizes of the kernel: one to three. */
  readonly kernel: readonly number[]
  /** How many parts the channels fall into, in and out; 1 for an ordinary convolution. */
  readonly groups: number
  /** Of a grouped convolution, whose outputs are no rows of the linear layer. */
  readonly #vectors: { magnitude: FloatArray | undefined; biasB: FloatArray | undefined } | undefined
  #movement: Movement | undefined
  readonly #random: Random

  /**
   * A layer from copies of trained factors, in evaluation mode.
   *
   * @param weightA (r, in, *kernel)
   * @param weightB (d, r/groups, 1…), as many dimensions
   * @throws ShapeError when the shapes disagree, or r, in or d is no multiple of the groups; else as {@link LoraLayer.fromFactors}
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
    const { rank, channels, kernel, d, groups } = convolutionShape(weightA.shape, weightB.shape, placeOf(name))
    const own = configForLayer(resolveConfigOf(config, rank), name)
    const a: Matrix = { data: weightA.data, shape: [rank, channels * elementCount(kernel)] }
    const b: Matrix = { data: weightB.data, shape: [d / groups, rank] }
    const isGrouped = groups > 1
    // So many rows has the weight (d, in/groups·K) when it is read as (d/groups, in·K).
    const held = isGrouped ? { ...own, useDora: false, loraBias: false } : own
    super(LoraLayer.fromFactors(a, b, held, name, isGrouped ? {} : vectors), own)
    if (isGrouped) this.#vectors = layerVectors(new Factors(a, { ...b, shape: [d, rank] }, false, vectors), own, name)
    this.#random = new Random(own.seed, `dropout/${name}`)
    this.channels = channels
    this.kernel = kernel
    this.groups = groups
  }

  /**
   * A new layer over a copy of the base's weight (d, in/groups, *kernel), in training mode: A drawn from the seed and the name, B
   * zero, a magnitude of ‖W‖ and a bias of zero where the config has them.
   *
   * @throws ConfigError when the config or the geometry is not valid, the rank is above min(d, in·K), or the groups do not divide
   *   it; UnsupportedError for an init that PEFT does not support for convolutions; ShapeError when the weight does not fit the
   *   number of groups
   */
  static ofBase(
    weight: Tensor<FloatArray>,
    geometry: ConvolutionGeometry & { groups?: number | undefined } = {},
    config: LoraConfigInput = {},
    name = '',
  ): ConvolutionLora {
    const own = configForLayer(resolveConfig(config), name)
    const { groups = 1, ...steps } = geometry
    const { weightA, weightB, vectors } = newConvolution(weight, groups, own, name)
    return new ConvolutionLora(weightA, weightB, own, name, vectors).attachBase(weight, steps).train()
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

  /** W (d, in/groups, *kernel), the layer's own; undefined while none is attached. */
  get baseWeight(): Tensor<FloatArray> | undefined {
    const base = this.linear.baseWeight
    return base && { data: base.data, shape: this.shape }
  }

  /**
   * Gives it its base convolution: a copy of the weight (d, in/groups, *kernel), and how it moves. Around the input are zeros:
   * PEFT's A pads with them whatever the base does.
   *
   * @throws ShapeError when the weight has another shape, ConfigError for a geometry that is not valid, StateError while merged
   */
  attachBase(weight: Tensor<FloatArray>, geometry: ConvolutionGeometry = {}): this {
    checkTensorShape(weight, this.shape, this.#where('baseWeight'))
    const movement = movementOf(this.kernel, geometry, placeOf(this.name))
    this.linear.baseWeight = { data: weight.data, shape: [this.linear.d, this.k] } // PEFT’s inits leave it alone
    this.#movement = movement
    this.tape = undefined
    return this
  }

  /** Dropout is on, where the config has it. */
  get isTraining(): boolean {
    return this.linear.isTraining
  }

  /** Turns dropout on, where the config has it. */
  train(): this {
    this.linear.train()
    return this
  }

  /** Turns dropout off. */
  eval(): this {
    this.linear.eval()
    return this
  }

  /** s·B·A (d, in, *kernel), a new tensor. Throws UnsupportedError for a grouped convolution. */
  delta(): Tensor<FloatArray> {
    this.#refuseGroups('delta')
    return { data: this.linear.delta().data, shape: this.shape }
  }

  /**
   * W + s·B·A (d, in, *kernel), with DoRA's magnitude, a new tensor; while merged, a copy of the base weight.
   *
   * @throws UnsupportedError for a grouped convolution, StateError without a base
   */
  effectiveWeight(): Tensor<FloatArray> {
    this.#refuseGroups('effectiveWeight')
    return { data: this.linear.effectiveWeight().data, shape: this.shape }
  }

  /** s·biasB (d), what merging adds to the base's bias; undefined for a layer without one. */
  biasDelta(): Float64Array | undefined {
    return this.biasB && Float64Array.from(this.biasB, (value) => this.scaling * value)
  }

  /**
   * Computes (n, in, ...input) → (n, d, ...output). The bias of the base is not added. A merged layer uses only its base weight and
   * the bias of B. It needs temporary memory for in·K numbers for each output position.
   *
   * @throws ShapeError when the input has another number of dimensions or channels, or is smaller than the kernel; StateError
   *   without a base; UnsupportedError for a dilated base to whose output PEFT's branch does not fit
   */
  forward(input: Tensor<FloatArray>): Tensor<FloatArray> {
    const { base, movement } = this.#needBase('forward')
    const location = this.#where('input')
    checkTensor(input, location)
    const [, channels, ...spatial] = input.shape
    if (spatial.length !== this.kernel.length || channels !== this.channels) {
      const expected = formatShape(['n', this.channels, ...this.kernel.map((_, i) => 'hwd'[i])])
      throw new ShapeError({ where: location, what: 'wrong shape', expected, got: formatShape(input.shape) })
    }
    const x = tensorAs(input, base.data)
    const weights = this.#passWeights(base)
    this.tape = undefined
    if (this.merged) return mergedForward(weights, movement, x, location)
    const isDropping = this.isTraining && this.config.dropout > 0
    const dropped = isDropping ? tensorAs(x, x.data) : undefined
    const keep = dropped && dropFrom(dropped, this.config.dropout, this.#random)
    const dora = this.magnitude && { magnitude: this.magnitude, norms: rowNorms(this.#normed(base)) }
    const { output, tape } = convolutionForward(weights, movement, x, dropped, dora, location)
    this.tape = { ...tape, keep }
    return output
  }

  /**
   * Gradients for the last forward from that of its output (n, d, ...output), as {@link LoraLayer.backward} gives them.
   *
   * @throws StateError before a forward and while merged, ShapeError when gradOutput is not shaped like the output
   */
  backward(gradOutput: Tensor<FloatArray>): ConvolutionGradients {
    const tape = this.tape
    if (tape === undefined) throw noForward(this.#where('backward'), this.merged)
    const { base } = this.#needBase('backward')
    checkTensorShape(gradOutput, [tape.input[0], this.d, ...tape.windows.output], this.#where('gradOutput'))
    const gradients = convolutionBackward(this.#passWeights(base), tape, tensorAs(gradOutput, base.data))
    const { weightA, weightB, magnitude, biasB, input, dropped } = gradients
    if (dropped !== undefined) addKept(input, dropped, this.config.dropout, tape.keep)
    return {
      weightA: { data: weightA.data, shape: this.weightA.shape },
      weightB: { data: weightB.data, shape: this.weightB.shape },
      input,
      ...(magnitude && { magnitude }),
      ...(biasB && { biasB }),
    }
  }

  /**
   * Adds s·B·A to the base weight.
   *
   * @throws UnsupportedError for a grouped convolution, and for a dilated one, whose A is not dilated in PEFT; else as
   *   {@link LoraLayer.merge}
   */
  override merge(): void {
    this.#refuseGroups('merge')
    if (this.#movement?.isDilated) {
      throw new UnsupportedError({
        where: this.#where('merge'),
        what: 'PEFT’s A is not dilated like this base: one convolution cannot do what both do',
      })
    }
    super.merge()
  }

  /** ‖s·B·A‖, Frobenius, without forming B·A. Each group's outputs see its own rows of A. */
  override normDelta(): number {
    let squares = 0
    for (let g = 0; g < this.groups; g++) {
      const own = normOfProduct(rowsOf(this.#groupedB(), g, this.groups), rowsOf(this.linear.weightA, g, this.groups))
      squares += own ** 2
    }
    return this.scaling * Math.sqrt(squares)
  }

  /** B (d, r/groups) */
  #groupedB(): Matrix {
    return { data: this.linear.weightB.data, shape: [this.d, this.rank / this.groups] }
  }

  #passWeights(base: Matrix): PassWeights {
    const { scaling, groups, biasB } = this
    return { base, weightA: this.linear.weightA, weightB: this.#groupedB(), scaling, groups, biasB }
  }

  /**
   * The matrix (d, in/groups·K) whose norms DoRA divides by. With groups, PEFT multiplies B as (d/groups, r) by A and reads the
   * product in the weight's shape, whatever meets there: magnitudes were trained with that.
   */
  #normed(base: Matrix): Matrix {
    return addScaled({ data: this.linear.delta().data, shape: base.shape }, base, 1)
  }

  #needBase(member: string): { base: Matrix; movement: Movement } {
    const { baseWeight } = this.linear
    if (baseWeight !== undefined && this.#movement !== undefined) {
      const shape = [this.d, this.k / this.groups] as const
      return { base: { data: baseWeight.data, shape }, movement: this.#movement }
    }
    throw noBase(this.#where(member), 'attachBase(W, { stride, padding, dilation })')
  }

  #refuseGroups(member: string): void {
    if (this.groups === 1) return
    throw new UnsupportedError({ where: this.#where(member), what: groupsRefusal(this.groups) })
  }

  #where(member: string): string {
    return where(this.name, member, 'ConvolutionLora')
  }
}

function checkTensorShape(tensor: Tensor<FloatArray>, shape: readonly number[], location: string): void {
  checkTensor(tensor, location)
  const [expected, got] = [formatShape(shape), formatShape(tensor.shape)]
  if (got !== expected) throw new ShapeError({ where: location, what: 'wrong shape', expected, got })
}

/** A copy in the precision of `like`. */
function tensorAs({ data, shape }: Tensor<FloatArray>, like: FloatArray): Tensor<FloatArray> {
  return { data: like instanceof Float64Array ? new Float64Array(data) : new Float32Array(data), shape }
}
