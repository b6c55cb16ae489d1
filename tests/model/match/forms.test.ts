import { describe, expect, it } from 'vitest'
import { LoraAdapter, UnsupportedError } from '../../../src/api/node.js'
import { abilitiesOf } from '../../../src/model/match/forms/forms.js'
import { findLinears } from '../../../src/model/match/linears.js'
import { makeAttribute } from '../../../src/onnx/view/attributes.js'
import { Graph } from '../../../src/onnx/view/graph.js'
import { ModelSession } from '../../../src/run/model-session.js'
import { deviation } from '../../golden.js'
import { inThread } from '../../run/models.js'
import {
  dataOf,
  feedsOfForm,
  floatsOfOutput,
  formAdapter,
  formNumbers,
  GOLDEN_FORMS,
  INTEGER_TOLERANCE,
  isHalf,
  openForm,
  quantizesInputs,
} from './golden-forms.js'

const LAYERS = ['fc1', 'fc2']

/** Reads W (d, k) of a layer from the stored weight, in two pieces. */
async function weightOf(model: Awaited<ReturnType<typeof openForm>>, name: string): Promise<Float32Array> {
  const graph = new Graph(model.proto)
  const linear = findLinears(graph).find((one) => one.name === name)!
  const { transposed, d, k, form } = linear
  const read = await form.openLines(model, graph, linear)
  const lines = transposed ? d : k
  const stored = [...(await read(0, 5)), ...(await read(5, lines - 5))]
  if (transposed) return Float32Array.from(stored)
  return Float32Array.from({ length: d * k }, (_, i) => stored[(i % k) * d + Math.floor(i / k)])
}

describe.each(GOLDEN_FORMS)('%s', (name) => {
  it('is found under its names and shapes, and its weights are read', async () => {
    const [model, numbers] = [await openForm(name), await formNumbers(name)]
    const linears = findLinears(new Graph(model.proto))
    expect(linears.map(({ name, k, d, isHead, input }) => [name, k, d, isHead, input])).toEqual([
      ['model.fc1', 48, 40, false, 'x'],
      ['model.fc2', 40, 24, true, '/model/Relu_output_0'],
    ])
    for (const linear of linears) expect(abilitiesOf(linear)).toMatchObject({ run: true, problem: undefined })
    for (const layer of LAYERS) {
      const weight = await weightOf(model, `model.${layer}`)
      expect(deviation(weight, dataOf(numbers, `${layer}.weight`))).toBeLessThan(isHalf(name) ? 1e-3 : 1e-6)
    }
    await model.close()
  })

  it('runs with an adapter beside it', async () => {
    const [onnx, numbers] = [await openForm(name), await formNumbers(name)]
    const session = await ModelSession.open({ onnx, runtime: inThread }, { adapters: { one: formAdapter(numbers) } })
    const feeds = feedsOfForm(name, numbers)
    const [base, adapted] = [await session.run(feeds), await session.run(feeds, { adapter: 'one' })]
    // ONNX Runtime computes DequantizeLinear → MatMul with 8-bit inputs, unless a session forbids it.
    const tolerance = isHalf(name) || name.startsWith('qdq') ? 1e-2 : quantizesInputs(name) ? INTEGER_TOLERANCE : 1e-5
    expect(deviation(floatsOfOutput(base.y), dataOf(numbers, 'y'))).toBeLessThan(tolerance)
    expect(deviation(floatsOfOutput(adapted.y), dataOf(numbers, 'adapted'))).toBeLessThan(tolerance)
    expect(deviation(floatsOfOutput(adapted.y), dataOf(numbers, 'y'))).toBeGreaterThan(0.1)
    await session.dispose()
    await onnx.close()
  })
})

describe.each(GOLDEN_FORMS.filter((name) => !isHalf(name)))('%s with DoRA', (name) => {
  it('has its outputs scaled by m / ‖W + s·B·A‖', async () => {
    const [onnx, numbers] = [await openForm(name), await formNumbers(name)]
    const magnitude = Float32Array.from({ length: 24 }, (_, i) => 1 + i / 24)
    const [a, b, w] = ['fc2.A', 'fc2.B', 'fc2.weight'].map((tensor) => dataOf(numbers, tensor))
    const factors = (scale: number) => ({ data: b.map((value) => value * scale), shape: [24, 4] as const })
    const dora = new LoraAdapter({ rank: 4, alpha: 8, useDora: true })
    dora.addFactors('model.fc2', { data: a, shape: [4, 40] }, factors(1), { magnitude })
    const plain = new LoraAdapter({ rank: 4, alpha: 8 })
    plain.addFactors('model.fc2', { data: a, shape: [4, 40] }, factors(1))
    const session = await ModelSession.open({ onnx, runtime: inThread }, { adapters: { dora, plain } })
    const feeds = feedsOfForm(name, numbers)
    const [scaled, sum] = [
      await session.run(feeds, { adapter: 'dora' }),
      await session.run(feeds, { adapter: 'plain' }),
    ]
    const norms = Float64Array.from({ length: 24 }, (_, i) => {
      let squares = 0
      for (let j = 0; j < 40; j++) {
        let value = w[i * 40 + j]
        for (let r = 0; r < 4; r++) value += 2 * b[i * 4 + r] * a[r * 40 + j]
        squares += value * value
      }
      return Math.sqrt(squares)
    })
    const expected = floatsOfOutput(sum.y).map((value, i) => (value * magnitude[i % 24]) / norms[i % 24])
    expect(deviation(floatsOfOutput(scaled.y), expected)).toBeLessThan(1e-5)
    await session.dispose()
    await onnx.close()
  })
})

describe('layouts that are not understood', () => {
  const changed = async (name: string, change: (graph: Graph) => void) => {
    const model = await openForm(name)
    const graph = new Graph(model.proto)
    change(graph)
    graph.invalidate()
    const linear = findLinears(graph)[0]
    await model.close()
    return { model, graph, linear }
  }
  const product = (graph: Graph, operator: string) => graph.nodes.find(({ opType }) => opType === operator)!
  const set = (operator: string, attribute: string, value: number) => (graph: Graph) => {
    const node = product(graph, operator)
    node.attribute = [...node.attribute.filter(({ name }) => name !== attribute), makeAttribute(attribute, value)]
  }
  const other = (operator: string, input: number, initializer: string) => (graph: Graph) => {
    product(graph, operator).input[input] = initializer
  }

  it.each<[string, string, (graph: Graph) => void, RegExp]>([
    ['bits', 'nbits-4-32', set('MatMulNBits', 'bits', 2), /2 bits, not 4 or 8/],
    ['blocks', 'nbits-4-32', set('MatMulNBits', 'block_size', 24), /blocks of 24/],
    ['sizes', 'nbits-4-32', set('MatMulNBits', 'N', 44), /a packed weight of 1280 bytes, not 1408/],
    ['scales', 'nbits-4-32', other('MatMulNBits', 2, 'onnx::MatMul_2_scales'), /48 scales, not 80/],
    ['order of rows', 'nbits-4-16-zeros', other('MatMulNBits', 4, 'onnx::MatMul_1_scales'), /g_idx/],
    ['table', 'bnb4-nf4', set('MatMulBnb4', 'quant_type', 3), /quant_type 3/],
    ['bnb4 sizes', 'bnb4-nf4', set('MatMulBnb4', 'K', 50), /a packed weight of 960 bytes, not 1000/],
    [
      'scales of int8',
      'int8-channels',
      other('MatMulInteger', 3, 'onnx::MatMul_2_zero_point'),
      /zero points for other/,
    ],
    [
      'scales of QDQ',
      'qdq-int8-channels',
      other('DequantizeLinear', 1, 'onnx::MatMul_2_scale'),
      /scales of shape \(24\)/,
    ],
  ])('%s', async (_, name, change, problem) => {
    const { model, graph, linear } = await changed(name, change)
    expect(linear.name).toBe('model.fc1')
    expect(abilitiesOf(linear)).toMatchObject({ run: true, train: false, problem: expect.stringMatching(problem) })
    const reading = linear.form.openLines(model, graph, linear)
    await expect(reading).rejects.toThrow(UnsupportedError)
    await expect(reading).rejects.toThrow(/model\/fc1\/MatMul/)
  })
})
