// The passes of an adapted convolution: those of a linear layer over the windows of its input. Dropout is on the input, before the
// windows, as in PEFT; whose A moves like the base but for its dilation, which PEFT does not pass on.

import { UnsupportedError } from '../../base/errors.js'
import { elementCount, type FloatArray, formatShape, type Matrix, type Tensor, zeros } from '../../base/tensor.js'
import { addBias, backwardPass, type Dora, forwardPass, type PassWeights, type Tape } from '../passes.js'
import { groupProduct } from './groups.js'
import {
  addFolded,
  type ConvolutionGeometry,
  rowsToTensor,
  type Steps,
  stepsOf,
  tensorToRows,
  unfold,
  type Windows,
  windowsOf,
} from './windows.js'

/** How the base and PEFT's A move over the input. */
export interface Movement {
  readonly base: Steps
  readonly branch: Steps
  /** The two differ. */
  readonly isDilated: boolean
}

/** What the forward pass leaves for the one back. */
export interface ConvolutionTape {
  readonly pass: Tape
  readonly windows: Windows
  readonly branchWindows: Windows
  /** The input's shape. */
  readonly input: readonly number[]
}

/** Gradients shaped like A (r, in·K), B (d, r/groups) and the input, whose two parts are those without and with dropout. */
interface ConvolutionPassGradients {
  readonly weightA: Matrix
  readonly weightB: Matrix
  readonly magnitude: FloatArray | undefined
  readonly biasB: FloatArray | undefined
  readonly input: Tensor<FloatArray>
  readonly dropped: Tensor<FloatArray> | undefined
}

/** How a geometry moves both. Throws ConfigError as {@link stepsOf} does. */
export function movementOf(kernel: readonly number[], geometry: ConvolutionGeometry, where: string): Movement {
  const base = stepsOf(kernel, geometry, where)
  const isDilated = base.dilation.some((step, i) => step !== 1 && kernel[i] !== 1)
  return { base, branch: isDilated ? stepsOf(kernel, { ...geometry, dilation: 1 }, where) : base, isDilated }
}

/** The base alone: (n, in, ...input) → (n, d, ...output), with the bias of B. Throws ShapeError for an input that is too small. */
export function mergedForward(
  { base, groups, biasB, scaling }: PassWeights,
  movement: Movement,
  x: Tensor<FloatArray>,
  where: string,
): Tensor<FloatArray> {
  const windows = windowsOf(x.shape.slice(2), movement.base, where)
  const output = groupProduct(unfold(x, windows), base, groups) // (n·P, in·K) @ (in·K, d)
  addBias(output, biasB, scaling)
  return rowsToTensor(output, windows.output)
}

/**
 * (n, in, ...input) → (n, d, ...output)
 *
 * @param dropped the input after dropout, where there is dropout
 * @throws ShapeError for an input that is too small; UnsupportedError where the outputs of base and branch differ in shape
 */
export function convolutionForward(
  weights: PassWeights,
  movement: Movement,
  x: Tensor<FloatArray>,
  dropped: Tensor<FloatArray> | undefined,
  dora: Dora | undefined,
  where: string,
): { output: Tensor<FloatArray>; tape: ConvolutionTape } {
  const spatial = x.shape.slice(2)
  const windows = windowsOf(spatial, movement.base, where)
  const branchWindows = movement.isDilated ? windowsOf(spatial, movement.branch, where) : windows
  if (formatShape(branchWindows.output) !== formatShape(windows.output)) {
    throw new UnsupportedError({
      where,
      what: 'PEFT’s A is not dilated, so its output does not fit the base’s',
      expected: formatShape(windows.output),
      got: formatShape(branchWindows.output),
    })
  }
  const base = unfold(x, windows) // (n·P, in·K)
  const droppedBase = dropped && unfold(dropped, windows)
  const branch = movement.isDilated ? unfold(dropped ?? x, branchWindows) : (droppedBase ?? base)
  const { output, tape } = forwardPass(weights, { base, branch, dropped: droppedBase }, dora)
  return { output: rowsToTensor(output, windows.output), tape: { pass: tape, windows, branchWindows, input: x.shape } }
}

/** From dY (n, d, ...output), for the weights that the forward pass had. */
export function convolutionBackward(
  weights: PassWeights,
  { pass, windows, branchWindows, input }: ConvolutionTape,
  dy: Tensor<FloatArray>,
): ConvolutionPassGradients {
  const { base, branch, dropped, ...rest } = backwardPass(weights, pass, tensorToRows(dy))
  const zero = () => ({ data: zeros(1, elementCount(input), dy.data).data, shape: input })
  const fromBranch = branch && addFolded(zero(), branch, branchWindows)
  return {
    ...rest,
    input: addFolded(zero(), base, windows),
    dropped: dropped === undefined ? fromBranch : addFolded(fromBranch ?? zero(), dropped, windows),
  }
}
