import { expect, test } from 'vitest'
import { Random } from '../../src/core/base/random.js'
import { transpose } from '../../src/core/base/tensor.js'
import { normals } from '../../src/core/linalg/product.js'
import { addDelta, StoredDelta } from '../../src/lora/delta.js'

test.each([false, true])('blocks of rows get the change of the whole weight; input-major %s', (isInputMajor) => {
  const random = new Random(1, 'delta')
  const factors = { weightA: normals(random, 2, 4), weightB: normals(random, 5, 2) }
  const weight = normals(random, 5, 4)
  const changed = addDelta({ data: weight.data.slice(), shape: [5, 4] }, factors, 1.5)
  const [stored, wanted] = isInputMajor ? [transpose(weight), transpose(changed)] : [weight, changed]
  const [rows, columns] = stored.shape
  const delta = new StoredDelta(factors, 1.5, isInputMajor)
  for (const [first, end] of [
    [0, 2],
    [2, rows],
  ]) {
    const data = Float32Array.from(stored.data.subarray(first * columns, end * columns))
    const block = delta.addTo({ data, shape: [end - first, columns] }, first)
    const expected = wanted.data.subarray(first * columns, end * columns)
    block.data.forEach((value, i) => void expect(value).toBeCloseTo(expected[i], 5))
  }
})
