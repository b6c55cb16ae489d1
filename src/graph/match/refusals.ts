// Tensors of adapters that have no place in a graph, as errors.

import { MismatchError, UnsupportedError } from '../../base/errors.js'
import { formatShape } from '../../base/tensor.js'

export function shapeError(where: string, expected: readonly number[], got: readonly number[]): MismatchError {
  return new MismatchError({
    where,
    what: 'the adapter has another shape for this tensor',
    expected: `${formatShape(expected)}, as in the graph`,
    got: formatShape(got),
    hint: 'Its base had another vocabulary or is another model',
  })
}

export function refuse(where: string, what: string, got?: string): never {
  throw new UnsupportedError({ where, what, ...(got !== undefined && { got }) })
}
