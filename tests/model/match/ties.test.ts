import { describe, expect, it } from 'vitest'
import { buildBackward } from '../../../src/onnx/gradients/backward.js'
import { ShapeMap } from '../../../src/onnx/shapes/shapes.js'
import type { Attributes } from '../../../src/onnx/view/attributes.js'
import { Builder } from '../../../src/onnx/view/builder.js'
import { goldenPath, readJson } from '../../golden.js'
import { addInput, addOutput, DataType, emptyGraph, floats, openGraph, valuesOf } from '../../onnx/toolkit.js'

interface GoldenTensor {
  shape: number[]
  values: number[]
}

interface TieCase {
  op: string
  attributes: Attributes
  inputs: GoldenTensor[]
  constants: (GoldenTensor | null)[]
  dy: GoldenTensor
  gradients: GoldenTensor[]
}

const { versions: _, ...cases } = readJson(goldenPath('ties.json')) as Record<string, TieCase>
const tensor = ({ shape, values }: GoldenTensor) => floats(DataType.FLOAT, values, shape)

describe('where a function has a kink or is flat, gradients are PyTorch’s', () => {
  it.each(Object.entries(cases))('%s', async (_, { op, attributes, inputs, constants, dy, gradients }) => {
    const graph = emptyGraph(17)
    const g = new Builder(graph, 'forward')
    const names = inputs.map((_, i) => addInput(graph, `x${i}`, DataType.FLOAT))
    const others = constants.map((constant) => (constant === null ? '' : g.float(constant.values, constant.shape)))
    const y = g.op(op, [...names, ...others], attributes)
    const shapes = new ShapeMap()
    const shaped = [...names, ...others, y].map((name, i) => [name, [...inputs, ...constants, dy][i]] as const)
    for (const [name, tensor] of shaped) {
      if (tensor !== null) shapes.set(name, { dims: tensor.shape, second: tensor.shape })
    }
    const seeds = new Map([[y, addInput(graph, 'dy', DataType.FLOAT)]])
    const found = buildBackward(new Builder(graph, 'backward'), shapes, seeds, names)
    const outputs = names.map((name) => found.get(name) as string)
    for (const output of outputs) addOutput(graph, output, DataType.FLOAT)

    const session = await openGraph(graph)
    const feeds = Object.fromEntries(names.map((name, i) => [name, tensor(inputs[i])]))
    const results = await session.run({ ...feeds, dy: tensor(dy) }, outputs)
    await session.dispose()
    for (const [i, output] of outputs.entries()) {
      expect(results[output].dims).toEqual(gradients[i].shape)
      valuesOf(results[output]).forEach((value, at) => {
        const expected = gradients[i].values[at]
        const size = Math.max(1, Math.abs(expected))
        expect(value / size).toBeCloseTo(expected / size, 5)
      })
    }
  })
})
