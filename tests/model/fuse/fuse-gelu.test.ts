import { describe, expect, it } from 'vitest'
import { Random } from '../../../src/core/base/random.js'
import { fuseGelu } from '../../../src/model/fuse/gelu.js'
import { Builder, type Value } from '../../../src/onnx/view/builder.js'
import type { Graph } from '../../../src/onnx/view/graph.js'
import { addInput, addOutput, DataType, emptyGraph, normals, openGraph } from '../../onnx/toolkit.js'

type Written = (g: Builder, x: Value) => Value

const onePlusErf = (g: Builder, x: Value) => g.add(g.op('Erf', [g.div(x, g.float(Math.SQRT2))]), g.float(1))

const KAPPA = Math.sqrt(2 / Math.PI)
const onePlusTanh = (g: Builder, x: Value, cube: Value, scale = 0.044715) =>
  g.add(g.float(1), g.op('Tanh', [g.mul(g.float(KAPPA), g.add(x, g.mul(g.float(scale), cube)))]))

/** The forms that PyTorch's exporters and others write. */
const FORMS: Record<string, Written> = {
  'x·(1 + erf)·½': (g, x) => g.mul(g.mul(x, onePlusErf(g, x)), g.float(0.5)),
  '½·(1 + erf)·x': (g, x) => g.mul(g.mul(g.float(0.5), onePlusErf(g, x)), x),
  '(x·½)·(1 + erf)': (g, x) => g.mul(g.mul(x, g.float([0.5])), onePlusErf(g, x)),
  'with a product for the quotient': (g, x) => {
    const erf = g.op('Erf', [g.mul(g.float(Math.SQRT1_2), x)])
    return g.mul(g.mul(x, g.add(g.float(1), erf)), g.float(0.5))
  },
}

const TANH_FORMS: Record<string, Written> = {
  'products and ½ at the end': (g, x) => g.mul(g.float(0.5), g.mul(x, onePlusTanh(g, x, g.mul(x, g.mul(x, x))))),
  'a power and ½ at the start': (g, x) =>
    g.mul(g.mul(g.float(0.5), x), onePlusTanh(g, x, g.op('Pow', [x, g.float(3)]))),
}

const OTHERS: Record<string, Written> = {
  'another scale': (g, x) => g.mul(g.mul(x, g.add(g.op('Erf', [g.div(x, g.float(1.5))]), g.float(1))), g.float(0.5)),
  'another factor': (g, x) => g.mul(g.mul(x, onePlusErf(g, x)), g.float(1.5)),
  'another summand': (g, x) =>
    g.mul(g.mul(x, g.add(g.op('Erf', [g.div(x, g.float(Math.SQRT2))]), g.float(2))), g.float(0.5)),
  'another cubic': (g, x) => g.mul(g.float(0.5), g.mul(x, onePlusTanh(g, x, g.mul(x, g.mul(x, x)), 0.05))),
  'another power': (g, x) => g.mul(g.float(0.5), g.mul(x, onePlusTanh(g, x, g.op('Pow', [x, g.float(2)])))),
  'another x': (g, x) => g.mul(g.mul(g.neg(x), onePlusErf(g, x)), g.float(0.5)),
  'an inner value that is read besides': (g, x) => {
    const inner = onePlusErf(g, x)
    return g.add(g.mul(g.mul(x, inner), g.float(0.5)), inner)
  },
}

function graphOf(write: Written): Graph {
  const graph = emptyGraph(17)
  addInput(graph, 'x', DataType.FLOAT, ['rows', 8])
  const g = new Builder(graph, 'test')
  addOutput(graph, write(g, 'x'), DataType.FLOAT)
  return graph
}

async function valuesOf(graph: Graph): Promise<Float32Array> {
  const session = await openGraph(graph)
  try {
    const results = await session.run({ x: normals(new Random(4, 'gelu'), [6, 8]) })
    return results[graph.outputs[0].name].data as Float32Array
  } finally {
    await session.dispose()
  }
}

describe('GELU that is written out', () => {
  const all = [FORMS, TANH_FORMS].flatMap((forms) => Object.entries(forms))
  it.each(all)('as %s is one operator', async (name, write) => {
    const fused = graphOf(write)
    fuseGelu(fused)
    expect(fused.nodes.map(({ opType }) => opType)).toEqual([name in FORMS ? 'Gelu' : 'FastGelu'])
    const [before, after] = [await valuesOf(graphOf(write)), await valuesOf(fused)]
    before.forEach((value, i) => void expect(after[i]).toBeCloseTo(value, 6))
  })

  it.each(Object.entries(OTHERS))('with %s stays', (_, write) => {
    const graph = graphOf(write)
    const before = graph.nodes.map(({ opType }) => opType)
    fuseGelu(graph)
    expect(graph.nodes.map(({ opType }) => opType)).toEqual(before)
  })
})
