import { describe, expect, it } from 'vitest'
import { UnsupportedError } from '../../src/api/node.js'
import type { NodeProto } from '../../src/onnx/format/gen/onnx_pb.js'
import type { GradientRule } from '../../src/onnx/gradients/context.js'
import { BROADCASTING, GRADIENTS, NON_DIFFERENTIABLE } from '../../src/onnx/gradients/gradients.js'
import { ShapeMap } from '../../src/onnx/shapes/shapes.js'
import type { Attributes } from '../../src/onnx/view/attributes.js'
import { Builder } from '../../src/onnx/view/builder.js'
import type { Graph } from '../../src/onnx/view/graph.js'
import { GRADIENT_CASES, GRAPH_CASES } from './gradient-cases.js'
import {
  type FloatInput,
  type GradientCase,
  type IntInput,
  openCase,
  toleranceOf,
  worstError,
} from './gradient-check.js'

describe('the table', () => {
  it('has a case for every rule, and no case without one', () => {
    expect([...new Set(GRADIENT_CASES.map(({ op }) => op))].sort()).toEqual(Object.keys(GRADIENTS).sort())
  })

  it('calls no operator both differentiable and not', () => {
    for (const op of NON_DIFFERENTIABLE) expect(GRADIENTS).not.toHaveProperty(op)
    for (const op of BROADCASTING) expect(GRADIENTS).toHaveProperty(op)
  })
})

describe('each rule equals central differences', () => {
  for (const spec of GRADIENT_CASES) {
    it(`${spec.op}: ${spec.note}`, async () => {
      for (const opset of spec.opsets) {
        expect(await worstError(spec, opset), `opset ${opset}`).toBeLessThan(toleranceOf(spec))
      }
    })
  }
})

describe('graphs of several nodes', () => {
  it.each(GRAPH_CASES.map((spec) => [`${spec.op}, ${spec.note}`, spec] as const))('%s', async (_, spec) => {
    for (const opset of [13, 18, 23]) expect(await worstError(spec, opset)).toBeLessThan(toleranceOf(spec))
  })
})

describe('the backward graph', () => {
  const opened = async (op: string, note: string) => {
    const spec = [...GRADIENT_CASES, ...GRAPH_CASES].find((entry) => entry.op === op && entry.note === note)
    const { graph, session } = await openCase(spec as GradientCase, 17)
    await session.dispose()
    graph.prune()
    return graph
  }
  const types = (graph: Graph) => graph.nodes.map(({ opType }) => opType)

  it('transposes no weight', async () => {
    const found = types(await opened('MatMul', '2-D weight'))
    expect(found.filter((type) => type === 'Gemm')).toHaveLength(2)
    expect(found).not.toContain('Transpose')
  })

  it('transposes no product in attention', async () => {
    const graph = await opened('attention', 'keys swapped as a value')
    const transposed = graph.nodes.filter(({ opType }) => opType === 'Transpose').map(({ input }) => input[0])
    expect(transposed.map((value) => graph.producer(value)?.opType)).not.toContain('MatMul')
  })

  it('expands no mean of squares', async () => {
    expect(types(await opened('RMS norm', 'written out with Pow'))).not.toContain('Expand')
  })

  it('knows shapes in advance where they are static', async () => {
    for (const [op, note] of [
      ['Reshape', 'split heads'],
      ['Slice', 'half'],
      ['Concat', 'last axis'],
      ['ReduceSum', 'last axis'],
    ]) {
      expect(types(await opened(op, note))).not.toContain('Shape')
    }
  })

  it('negates the rotary sine once', async () => {
    const graph = await opened('com.microsoft:RotaryEmbedding', 'halves, (B, S, H)')
    const node = graph.nodes.find(({ opType }) => opType === 'RotaryEmbedding') as NodeProto
    const g = new Builder(graph, 'again')
    const dys = ['dy0']
    GRADIENTS['com.microsoft:RotaryEmbedding']({
      ...{ g, node, inputs: node.input, outputs: node.output, dys, dy: 'dy0', shapes: new ShapeMap() },
    })[0]?.()
    expect(types(graph).filter((type) => type === 'Neg')).toHaveLength(1)
  })
})

/** Convolutions without a gradient. */
const CONVOLUTIONS = (
  [
    ['its auto_pad SAME_UPPER', [1, 2, 6], [1, 2, 6], { auto_pad: 'SAME_UPPER' }],
    ['strides along an axis whose length changes', [1, 2, 6], [1, 2, 9], { strides: [2] }],
    ['a trained weight', [1, 2, 6], [1, 2, 6], {}],
  ] satisfies [string, number[], number[], Attributes][]
).map(([note, shape, other, attributes]): GradientCase => {
  const weight: FloatInput = { kind: 'float', shape: [2, 2, 3] }
  return { op: 'Conv', note, inputs: [{ kind: 'float', shape, other }, weight], attributes, f32: true }
})

describe('what has no gradient is refused by node and op', () => {
  const x: FloatInput = { kind: 'float', shape: [2, 6], other: [2, 9] }
  const int = (value: number): IntInput => ({ kind: 'int', values: [value], shape: [1] })
  it.each([
    { op: 'Slice', note: 'steps along a dynamic axis', inputs: [x, int(0), int(5), int(1), int(2)] },
    {
      op: 'LayerNormalization',
      note: 'a mean that the loss reads',
      inputs: [x, { kind: 'float', shape: [1] }],
      outputs: 2,
      f32: true,
    },
    {
      op: 'com.microsoft:FusedMatMul',
      note: 'a vector',
      inputs: [x, { kind: 'float', shape: [6], other: [9] }],
      f32: true,
    },
    ...CONVOLUTIONS,
  ] satisfies GradientCase[])('$op: $note', async (spec) => {
    const opening = openCase(spec, 17)
    await expect(opening).rejects.toThrow(UnsupportedError)
    await expect(opening).rejects.toThrow(/^node forward\/(\w+) \(\1\): /)
  })

  it.each(CONVOLUTIONS)('a convolution with $note, with what to do', async (spec) => {
    await expect(openCase(spec, 17)).rejects.toThrow(new RegExp(`${spec.note} .*no gradient of its weight`))
  })
})

describe('a wrong rule is found', () => {
  const wrong = {
    'a flipped sign': (g, value) => g.neg(value),
    'a factor of 1.01': (g, value) => g.mul(value, g.float(1.01)),
  } satisfies Record<string, (g: Parameters<GradientRule>[0]['g'], value: string) => string>
  const first = new Map([...GRADIENT_CASES].reverse().map((spec) => [spec.op, spec]))
  for (const [fault, spoil] of Object.entries(wrong)) {
    it.each([...first.values()].map((spec) => [spec.op, spec] as const))(`${fault} in %s`, async (op, spec) => {
      const rule: GradientRule = (context) =>
        GRADIENTS[op](context).map((thunk) => thunk && (() => spoil(context.g, thunk())))
      expect(await worstError(spec, spec.opsets[0], rule)).toBeGreaterThan(toleranceOf(spec))
    })
  }
})
