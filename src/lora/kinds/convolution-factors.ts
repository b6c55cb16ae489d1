// A convolution's factors, A (r, in, *kernel) and B (d, r/groups, 1…): their shapes, for files that hold them and layers made of
// them, and new ones.

import { ConfigError, ShapeError, UnsupportedError } from '../../base/errors.js'
import { checkTensor, elementCount, type FloatArray, formatShape, type Tensor, zeros } from '../../base/tensor.js'
import type { LoraConfig } from '../config.js'
import { rowNorms } from '../dora.js'
import { checkRank, type LayerVectors, where } from '../factors.js'
import { firstFactors } from '../init/initializers.js'
import type { Init } from '../init/inits.js'

/** `lora-ga` leaves convolutions alone. */
const STARTS: readonly Init[] = ['normal', 'kaiming-uniform', 'gaussian', 'lora-ga']

/** Why the change of a grouped convolution cannot be merged. */
export function groupsRefusal(groups: number): string {
  return `an adapted convolution of ${groups} groups cannot be merged, as in PEFT: A sees all channels, the weight those of its group`
}

/** What the shapes of a convolution's factors tell. */
interface ConvolutionShape {
  readonly rank: number
  /** Input channels, of all groups. */
  readonly channels: number
  readonly kernel: readonly number[]
  /** Output channels. */
  readonly d: number
  readonly groups: number
}

/** @throws ShapeError when A (r, in, *kernel) and B (d, r/groups, 1…) disagree */
export function convolutionShape(a: readonly number[], b: readonly number[], location: string): ConvolutionShape {
  const [rank, channels, ...kernel] = a
  const [d, groupRank] = b
  const groups = rank / groupRank
  const isUsable =
    kernel.length >= 1 &&
    kernel.length <= 3 &&
    elementCount(a) * elementCount(b) > 0 &&
    formatShape(b) === formatShape([d, groupRank, ...kernel.map(() => 1)]) &&
    [groups, channels / groups, d / groups].every(Number.isInteger)
  if (isUsable) return { rank, channels, kernel, d, groups }
  throw new ShapeError({
    where: location,
    what: 'not the factors of a convolution',
    expected: 'A (r, in, *kernel) and B (d, r/groups, 1…)',
    got: `${formatShape(a)} and ${formatShape(b)}`,
  })
}

/**
 * What a new layer over a weight (d, in/groups, *kernel) starts from.
 *
 * @throws ConfigError when the groups do not divide the rank, or the rank is above min(d, in·K); UnsupportedError for an init that
 *   PEFT has not for convolutions; ShapeError when the weight is none of a convolution of so many groups
 */
export function newConvolution(
  weight: Tensor<FloatArray>,
  groups: number,
  config: LoraConfig,
  name: string,
): { weightA: Tensor<FloatArray>; weightB: Tensor<FloatArray>; vectors: LayerVectors } {
  checkTensor(weight, where(name, 'baseWeight', 'ConvolutionLora'))
  if (!Number.isSafeInteger(groups) || groups < 1 || config.rank % groups !== 0) {
    throw new ConfigError({
      where: where(name, 'groups', 'ConvolutionLora'),
      what: 'the rank is not a multiple of the groups, as PEFT requires',
      expected: `a divisor of ${config.rank}`,
      got: String(groups),
    })
  }
  const { data, shape } = weight
  const [d, groupChannels, ...kernel] = shape
  const shapeA = [config.rank, groupChannels * groups, ...kernel]
  const shapeB = [d, config.rank / groups, ...kernel.map(() => 1)]
  convolutionShape(shapeA, shapeB, placeOf(name))
  if (!STARTS.includes(config.init)) {
    throw new UnsupportedError({
      where: where(name, 'init', 'ConvolutionLora'),
      what: 'PEFT starts no convolution so',
      expected: STARTS.join(', '),
      got: config.init,
    })
  }
  const matrixShape = [d, elementCount(shapeA.slice(1))] as const
  checkRank(matrixShape, config, name)
  const { weightA } = firstFactors(config, name, matrixShape, data)
  return {
    weightA: { data: weightA.data, shape: shapeA },
    weightB: { data: zeros(d, shapeB[1], data).data, shape: shapeB },
    vectors: {
      magnitude: config.useDora ? rowNorms({ data, shape: [d, data.length / d] }) : undefined,
      biasB: config.loraBias ? zeros(1, d, data).data : undefined,
    },
  }
}

/** A layer as a whole, for messages. */
export function placeOf(name: string): string {
  return name || 'ConvolutionLora'
}
