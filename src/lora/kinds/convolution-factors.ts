// Checks the shapes of a convolution's factors. A (r, in, *kernel) reads all input channels. B (d, r/groups, 1…) reads
// the r/groups results of A that belong to its group.

import { ShapeError } from '../../core/base/errors.js'
import { elementCount, formatShape } from '../../core/base/tensor.js'

export function groupsRefusal(groups: number): string {
  return `an adapted convolution of ${groups} groups cannot be merged, as in PEFT: A sees all channels, the weight those of its group`
}

export function convolutionShape(a: readonly number[], b: readonly number[], location: string) {
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
