import { describe, expect, it } from 'vitest'
import { buildBackward } from '../../src/graph/backward.js'
import { Builder } from '../../src/graph/builder.js'
import { ShapeMap } from '../../src/graph/shapes.js'
import { goldenPath, readJson } from '../golden.js'
import { addInput, addOutput, DataType, emptyGraph, floats, openGraph, valuesOf } from './toolkit.js'

interface GoldenTensor {
  shape: number[]
  values: number[]
}

interface TieCase {
  op: string
  attributes: Record<string, number | number[]>
  inputs: GoldenTensor[]
  dy: GoldenTensor
  gradients: GoldenTensor[]
}

const { versions: _, ...cases } = readJson(goldenPath('ties.json')) as Record<string, TieCase>
const tensor = ({ shape, values }: GoldenTensor) => floats(DataType.FLOAT, values, shape)

describe('where a function has a kink, gradients are PyTorch’s', () => {
  it.each(Object.entries(cases))('%s', async (_, { op, attributes, inputs, dy, gradients }) => {
    const graph = emptyGraph(17)
    const g = new Builder(graph, 'forward')
    const names = inputs.map((_, i) => addInput(graph, `x${i}`, DataType.FLOAT))
    const y = g.op(op, names, attributes)
    const shapes = new ShapeMap()
    for (const [name, { shape }] of [...names.map((name, i) => [name, inputs[i]] as const), [y, dy] as const]) {
      shapes.set(name, { dims: shape, other: shape })
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
      valuesOf(results[output]).forEach((value, at) => void expect(value).toBeCloseTo(gradients[i].values[at], 5))
    }
  })
})
