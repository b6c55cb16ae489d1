// Cases for every rule of the table: shapes, broadcasting, attributes, opsets, and ranges of values away from kinks and
// poles.

import type { Builder, Value } from '../../src/onnx/view/builder.js'
import type { BoolInput, FloatInput, GradientCase, IntInput } from './gradient-check.js'
import { DataType } from './toolkit.js'

type Shape = readonly number[]

/** A tensor with values in [−2, 2]. */
const x = (shape: Shape, other?: Shape): FloatInput => ({ kind: 'float', shape, other })
const within = (low: number, high: number, shape: Shape, other?: Shape): FloatInput => ({
  ...x(shape, other),
  domain: { low, high },
})
const positive = (shape: Shape, other?: Shape) => within(0.5, 2, shape, other)
/** Magnitudes in [0.5, 2] with both signs. */
const away = (shape: Shape, other?: Shape): FloatInput => ({
  ...x(shape, other),
  domain: { low: 0.5, high: 2, away: true },
})
/** Values at least 0.1 apart. */
const apart = (shape: Shape, other?: Shape): FloatInput => ({ ...x(shape, other), domain: 'grid' })
const constant = (...values: number[]): FloatInput => ({ kind: 'float', shape: [], constant: values })
const frozen = (input: FloatInput): FloatInput => ({ ...input, frozen: true })
const ints = (...values: number[]): IntInput => ({ kind: 'int', values, shape: [values.length] })
const index = (value: number): IntInput => ({ kind: 'int', values: [value], shape: [] })
/** An input that is fed at run time, with its values at the two points. */
const fed = (values: number[], other: number[]): IntInput => ({ kind: 'int', values, other, shape: [values.length] })
const bools = (shape: Shape, other?: Shape): BoolInput => ({ kind: 'bool', shape, other })

const binary = (op: string, left = x, right = x): GradientCase[] => [
  { op, note: 'same shapes', inputs: [left([2, 3]), right([2, 3])] },
  { op, note: 'a scalar', inputs: [left([2, 3]), right([])] },
  { op, note: 'a row and a column', inputs: [left([2, 1, 4]), right([3, 1])] },
  { op, note: 'dynamic leading axes', inputs: [left([4]), right([2, 3, 4], [5, 7, 4])] },
  { op, note: 'kept axes of 1', inputs: [left([2, 1, 3, 1], [4, 1, 5, 1]), right([2, 3, 3, 4], [4, 3, 5, 4])] },
]
const unary = (op: string, input = x, rest: Partial<GradientCase> = {}): GradientCase[] => [
  { op, note: 'any shape', inputs: [input([2, 3, 4])], ...rest },
]

const CONVOLUTIONS: readonly Omit<GradientCase, 'op'>[] = [
  {
    note: 'patches',
    inputs: [x([2, 3, 6, 6], [5, 3, 6, 6]), frozen(x([4, 3, 2, 2])), x([4])],
    attributes: { strides: [2, 2] },
  },
  { note: 'kernel 1, dynamic lengths', inputs: [x([2, 3, 4], [5, 3, 7]), frozen(x([4, 3, 1])), x([4])] },
  {
    note: 'a rest that no window reaches',
    inputs: [x([2, 2, 8, 7]), frozen(x([3, 2, 3, 2]))],
    attributes: { strides: [3, 2] },
  },
  {
    note: 'pads and dilations',
    inputs: [x([2, 2, 7, 6]), frozen(x([3, 2, 3, 2])), x([3])],
    attributes: { strides: [2, 1], pads: [1, 0, 2, 1], dilations: [1, 2] },
  },
  {
    note: 'pads, dynamic length',
    inputs: [x([1, 2, 5], [1, 2, 8]), frozen(x([3, 2, 3]))],
    attributes: { pads: [1, 1] },
  },
  {
    note: 'groups',
    inputs: [x([2, 4, 5]), frozen(x([6, 2, 3])), x([6])],
    attributes: { group: 2 },
  },
]

const cases: readonly GradientCase[] = [
  { op: 'MatMul', note: '2-D', inputs: [x([3, 4]), x([4, 5])] },
  { op: 'MatMul', note: '2-D weight', inputs: [x([2, 3, 4], [5, 7, 4]), x([4, 6])] },
  { op: 'MatMul', note: '2-D weight, static rows', inputs: [x([2, 3, 4]), x([4, 6])] },
  { op: 'MatMul', note: 'batched', inputs: [x([2, 3, 4, 5], [3, 3, 6, 5]), x([2, 3, 5, 4], [3, 3, 5, 6])] },
  { op: 'MatMul', note: 'broadcast batch', inputs: [x([2, 3, 2, 4, 5]), x([2, 3, 1, 5, 6])] },
  { op: 'MatMul', note: 'fewer axes left', inputs: [x([4, 5]), x([2, 3, 5, 2], [4, 3, 5, 2])] },
  { op: 'MatMul', note: 'broadcast both ways', inputs: [x([3, 1, 4, 5]), x([2, 5, 2])] },
  { op: 'MatMul', note: 'vector right', inputs: [x([2, 3, 4], [5, 2, 4]), x([4])] },
  { op: 'MatMul', note: 'vector left', inputs: [x([4]), x([2, 4, 3])] },
  { op: 'MatMul', note: 'two vectors', inputs: [x([4]), x([4])] },
  ...[0, 1].flatMap((transA) =>
    [0, 1].map((transB) => ({
      op: 'Gemm',
      note: `transA ${transA} transB ${transB}`,
      inputs: [x(transA ? [4, 3] : [3, 4]), x(transB ? [5, 4] : [4, 5]), x([5])],
      attributes: { transA, transB, alpha: { float: 0.75 }, beta: { float: -1.5 } },
    })),
  ),
  { op: 'Gemm', note: 'no bias', inputs: [x([3, 4], [6, 4]), x([4, 5])] },
  { op: 'Gemm', note: 'bias as a column', inputs: [x([3, 4]), x([4, 5]), x([3, 1])] },
  { op: 'Gemm', note: 'bias as a scalar', inputs: [x([3, 4]), x([4, 5]), x([])] },

  ...[0, 1].flatMap((transA) =>
    [0, 1].map((transB) => ({
      op: 'com.microsoft:FusedMatMul',
      note: `transA ${transA} transB ${transB}`,
      inputs: [x(transA ? [2, 4, 3] : [2, 3, 4]), x(transB ? [3, 1, 5, 4] : [3, 1, 4, 5])],
      attributes: { transA, transB, alpha: { float: 0.75 } },
      f32: true,
    })),
  ),
  {
    op: 'com.microsoft:FusedMatMul',
    note: '2-D weight',
    inputs: [x([2, 3, 4], [5, 7, 4]), x([5, 4])],
    attributes: { transB: 1 },
    f32: true,
  },

  ...CONVOLUTIONS.map((spec): GradientCase => ({ op: 'Conv', f32: true, ...spec })),

  ...binary('Add'),
  ...binary('Sub'),
  ...binary('Mul'),
  ...binary('Div', x, away),
  ...binary('Pow', positive),
  { op: 'Pow', note: 'constant 2', inputs: [x([2, 3]), constant(2)] },
  { op: 'Pow', note: 'constant 3', inputs: [x([2, 3]), constant(3)] },
  { op: 'Pow', note: 'constant −0.5', inputs: [positive([2, 3]), constant(-0.5)] },
  { op: 'Pow', note: 'integer exponent', inputs: [away([2, 3]), index(4)] },
  { op: 'Pow', note: 'integer exponents', inputs: [away([2, 3]), ints(0, 1, 4)] },
  ...unary('Neg'),
  ...unary('Sqrt', positive),
  ...unary('Reciprocal', away),
  ...unary('Exp'),
  ...unary('Log', positive),
  ...unary('Abs', away),
  ...unary('Sin'),
  ...unary('Cos', x, { f32: true }),
  ...unary('Erf', x, { f32: true }),
  ...unary('Identity'),
  { op: 'Dropout', note: 'inference', inputs: [x([2, 3])] },
  { op: 'Dropout', note: 'ratio and mode', inputs: [x([2, 3]), frozen(within(0.5, 0.5, []))] },
  { op: 'Cast', note: 'to the same type', inputs: [x([2, 3])], attributes: { to: DataType.DOUBLE } },
  { op: 'Cast', note: 'f32 to f64', inputs: [x([2, 3])], attributes: { to: DataType.DOUBLE }, f32: true },

  { op: 'CastLike', note: 'of the same type', inputs: [x([2, 3]), frozen(x([1]))], opsets: [15, 23] },

  { op: 'Where', note: 'same shapes', inputs: [bools([2, 3]), x([2, 3]), x([2, 3])] },
  { op: 'Where', note: 'broadcast', inputs: [bools([2, 1, 4], [5, 1, 4]), x([3, 1]), x([])] },
  { op: 'Where', note: 'condition stretched', inputs: [bools([3]), x([2, 3], [4, 3]), x([1, 3])] },
  ...binary('Max', apart, apart),
  ...binary('Min', apart, apart),
  { op: 'Max', note: 'three inputs', inputs: [apart([2, 3]), apart([3]), apart([2, 1])] },
  { op: 'Clip', note: 'both limits', inputs: [apart([4, 5]), constant(-0.5), constant(0.7)] },
  { op: 'Clip', note: 'only a maximum', inputs: [apart([4, 5]), undefined, constant(0.7)] },
  { op: 'Clip', note: 'limits with gradients', inputs: [apart([4, 5]), within(-0.5, -0.5, []), within(0.7, 0.7, [])] },
  ...unary('Relu', away),

  ...unary('Sigmoid'),
  ...unary('Tanh'),
  ...unary('Softplus', x, { f32: true }),
  { op: 'HardSigmoid', note: 'inside', inputs: [x([3, 4])], f32: true },
  {
    op: 'HardSigmoid',
    note: 'outside, with attributes',
    inputs: [within(1, 2, [3, 4])],
    attributes: { alpha: { float: 0.9 }, beta: { float: 0.3 } },
    f32: true,
  },
  { op: 'Gelu', note: 'exact', inputs: [x([2, 3, 4])], opsets: [20, 21], f32: true },
  {
    op: 'Gelu',
    note: 'tanh',
    inputs: [x([2, 3, 4])],
    attributes: { approximate: 'tanh' },
    opsets: [20],
    f32: true,
  },
  ...unary('com.microsoft:Gelu', x, { f32: true }),
  ...unary('com.microsoft:FastGelu', x, { f32: true }),
  { op: 'com.microsoft:FastGelu', note: 'bias', inputs: [x([2, 3, 4], [5, 7, 4]), x([4])], f32: true },
  ...unary('com.microsoft:QuickGelu', x, { f32: true }),
  {
    op: 'com.microsoft:QuickGelu',
    note: 'alpha',
    inputs: [x([5])],
    attributes: { alpha: { float: 0.8 } },
    f32: true,
  },

  { op: 'ReduceSum', note: 'last axis', inputs: [x([2, 3, 4]), ints(-1)] },
  {
    op: 'ReduceSum',
    note: 'two axes, dropped',
    inputs: [x([2, 3, 4], [5, 3, 2]), ints(0, 2)],
    attributes: { keepdims: 0 },
  },
  { op: 'ReduceSum', note: 'all', inputs: [x([2, 3])] },
  { op: 'ReduceSum', note: 'none', inputs: [x([2, 3])], attributes: { noop_with_empty_axes: 1 } },
  ...['ReduceMean', 'ReduceMax', 'ReduceMin'].flatMap((op): GradientCase[] => {
    const input = op === 'ReduceMean' ? x : apart
    return [
      { op, note: 'axis as attribute', inputs: [input([2, 3, 4])], attributes: { axes: [-1] }, opsets: [17] },
      { op, note: 'all', inputs: [input([2, 3], [4, 5])], attributes: { keepdims: 0 } },
      {
        op,
        note: 'dynamic axis as attribute',
        inputs: [input([2, 3, 4], [2, 5, 4])],
        attributes: { axes: [1], keepdims: 0 },
        opsets: [17],
      },
      { op, note: 'axes as input', inputs: [input([2, 3, 4], [5, 3, 4]), ints(1, -1)], opsets: [18, 21] },
    ]
  }),

  { op: 'Softmax', note: 'last axis', inputs: [x([2, 3, 4])] },
  { op: 'Softmax', note: 'first axis', inputs: [x([2, 3, 4])], attributes: { axis: 0 } },
  { op: 'LogSoftmax', note: 'last axis', inputs: [x([2, 3, 4])] },
  { op: 'LogSoftmax', note: 'middle axis', inputs: [x([2, 3, 4])], attributes: { axis: 1 } },
  {
    op: 'LayerNormalization',
    note: 'last axis',
    inputs: [x([2, 3, 8], [4, 5, 8]), x([8]), x([8])],
    attributes: { epsilon: { float: 0.01 } },
    f32: true,
  },
  {
    op: 'LayerNormalization',
    note: 'two axes, no bias',
    inputs: [x([2, 3, 4]), x([3, 4])],
    attributes: { axis: 1 },
    f32: true,
  },
  {
    op: 'SimplifiedLayerNormalization',
    note: 'last axis',
    inputs: [x([2, 3, 8], [4, 5, 8]), x([8])],
    attributes: { epsilon: { float: 0.01 } },
    f32: true,
  },
  {
    op: 'RMSNormalization',
    note: 'last axis',
    inputs: [x([2, 3, 8], [4, 5, 8]), x([8])],
    attributes: { epsilon: { float: 0.01 } },
    opsets: [23],
    f32: true,
  },

  { op: 'Reshape', note: 'static', inputs: [x([2, 3, 4]), ints(6, 4)] },
  { op: 'Reshape', note: 'split heads', inputs: [x([2, 3, 8], [5, 7, 8]), ints(0, 0, 2, 4)] },
  { op: 'Reshape', note: 'merged axes', inputs: [x([2, 3, 8], [5, 7, 8]), ints(-1, 8)] },
  { op: 'Reshape', note: 'one inferred axis', inputs: [x([2, 3, 8], [5, 3, 8]), ints(-1, 8)] },
  { op: 'Flatten', note: 'axis 2', inputs: [x([2, 3, 4])], attributes: { axis: 2 } },
  { op: 'Squeeze', note: 'axes', inputs: [x([2, 1, 3, 1]), ints(1)] },
  { op: 'Squeeze', note: 'all', inputs: [x([2, 1, 3, 1])] },
  { op: 'Unsqueeze', note: 'axes', inputs: [x([2, 3], [5, 3]), ints(0, -1)] },
  { op: 'Transpose', note: 'permutation', inputs: [x([2, 3, 4])], attributes: { perm: [1, 2, 0] } },
  { op: 'CumSum', note: 'forwards', inputs: [x([2, 4], [3, 5]), index(1)], opsets: [14, 18, 23] },
  {
    op: 'CumSum',
    note: 'backwards, without itself',
    inputs: [x([3, 2]), index(-2)],
    attributes: { reverse: 1, exclusive: 1 },
    opsets: [14, 18, 23],
  },
  ...['ReduceSumSquare', 'ReduceL2'].flatMap((op): GradientCase[] => [
    { op, note: 'last axis', inputs: [x([2, 3, 4])], attributes: { axes: [-1] }, opsets: [13] },
    {
      op,
      note: 'one axis, dropped',
      inputs: [x([2, 3, 4], [5, 3, 4]), ints(1)],
      attributes: { keepdims: 0 },
      opsets: [18, 23],
    },
  ]),
  { op: 'LpNormalization', note: 'last axis', inputs: [x([2, 3, 4], [5, 3, 4])], opsets: [13, 22] },
  { op: 'LpNormalization', note: 'another axis', inputs: [x([2, 3, 4])], attributes: { axis: 1 }, opsets: [13, 22] },
  {
    op: 'Einsum',
    note: 'a batch of products',
    inputs: [x([2, 3, 4], [3, 3, 4]), x([2, 4, 5], [3, 4, 5])],
    attributes: { equation: 'bij,bjk->bik' },
  },
  {
    op: 'Einsum',
    note: 'three factors',
    inputs: [x([2, 3]), x([3, 4]), x([2, 4])],
    attributes: { equation: 'ij, jk, ik -> ki' },
  },
  {
    op: 'Einsum',
    note: 'a letter of one factor',
    inputs: [x([2, 3, 4], [2, 5, 4]), x([2])],
    attributes: { equation: 'ijk,i->ki' },
  },
  { op: 'Transpose', note: 'reversed', inputs: [x([2, 3, 4])] },
  { op: 'Expand', note: 'to more axes', inputs: [x([3, 1]), ints(2, 3, 4)] },
  { op: 'Expand', note: 'in place', inputs: [x([2, 1, 4]), ints(1, 3, 1)] },
  { op: 'Expand', note: 'at run time', inputs: [x([1, 3]), fed([2, 3], [4, 3])] },
  { op: 'Tile', note: 'along two axes', inputs: [x([2, 3, 1], [4, 3, 1]), ints(2, 1, 3)] },
  { op: 'Tile', note: 'at run time', inputs: [x([1, 3]), fed([2, 1], [4, 2])] },
  { op: 'Concat', note: 'last axis', inputs: [x([2, 3]), x([2, 1]), x([2, 2])], attributes: { axis: -1 } },
  { op: 'Concat', note: 'dynamic', inputs: [x([2, 3], [2, 4]), x([2, 1], [2, 5])], attributes: { axis: 1 } },
  {
    op: 'Concat',
    note: 'empty past',
    inputs: [frozen(x([2, 0, 3])), x([2, 4, 3], [2, 5, 3])],
    attributes: { axis: 1 },
  },
  { op: 'Split', note: 'sizes', inputs: [x([2, 6]), ints(1, 2, 3)], attributes: { axis: 1 }, outputs: 3 },
  {
    op: 'Split',
    note: 'one unused',
    inputs: [x([2, 6], [5, 6]), ints(1, 5)],
    attributes: { axis: -1 },
    outputs: 2,
    flows: [0],
  },
  {
    op: 'Split',
    note: 'equal, by number',
    inputs: [x([4, 3])],
    attributes: { num_outputs: 2 },
    outputs: 2,
    opsets: [18],
  },
  { op: 'Split', note: 'equal', inputs: [x([4, 3])], outputs: 2, opsets: [13] },

  { op: 'Slice', note: 'half', inputs: [x([2, 6]), ints(3), ints(2 ** 53), ints(1)] },
  { op: 'Slice', note: 'whole', inputs: [x([2, 6]), ints(0), ints(6), ints(1), ints(1)] },
  { op: 'Slice', note: 'negative start and end', inputs: [x([5, 6]), ints(-4, 1), ints(-1, -2), ints(0, -1)] },
  { op: 'Slice', note: 'default axes', inputs: [x([4, 5]), ints(1, 2), ints(3, 4)] },
  { op: 'Slice', note: 'strided', inputs: [x([2, 7]), ints(1), ints(7), ints(1), ints(2)] },
  { op: 'Slice', note: 'reversed', inputs: [x([6, 2]), ints(-1), ints(-(2 ** 53)), ints(0), ints(-1)] },
  {
    op: 'Slice',
    note: 'backwards by 2, and forwards',
    inputs: [x([7, 5]), ints(5, 1), ints(0, 4), ints(0, 1), ints(-2, 1)],
  },
  { op: 'Slice', note: 'dynamic axis', inputs: [x([2, 6], [2, 9]), ints(2), ints(5), ints(1)] },
  {
    op: 'Slice',
    note: 'from the end of a dynamic axis',
    inputs: [x([2, 6], [2, 9]), ints(-2), ints(2 ** 53), ints(1)],
  },
  { op: 'Slice', note: 'run-time bounds', inputs: [x([2, 6], [2, 9]), fed([1], [3]), fed([4], [5]), ints(1)] },
  {
    op: 'Slice',
    note: 'run-time start from the end',
    inputs: [x([6, 2], [9, 2]), fed([-3], [-5]), fed([-1], [-1]), ints(0)],
  },
  { op: 'Gather', note: 'one place, dropped', inputs: [x([2, 5, 3], [4, 5, 3]), index(1)], attributes: { axis: 1 } },
  { op: 'Gather', note: 'the last place', inputs: [x([2, 5, 3], [4, 7, 3]), index(-1)], attributes: { axis: 1 } },
  { op: 'Gather', note: 'one place, kept', inputs: [x([5, 3]), ints(2)] },
  { op: 'Gather', note: 'a run-time place', inputs: [x([5, 3]), fed([2], [4])] },
  { op: 'Gather', note: 'repeated', inputs: [x([5, 3], [6, 3]), ints(1, -1, 1)] },
  {
    op: 'Gather',
    note: 'a matrix of places',
    inputs: [x([2, 4, 3]), { kind: 'int', values: [0, 3, 1, 3], shape: [2, 2] }],
    attributes: { axis: 1 },
  },
  { op: 'Pad', note: 'around', inputs: [x([2, 3], [2, 5]), ints(1, 0, 2, 3)] },
  { op: 'Pad', note: 'at run time', inputs: [x([2, 3], [2, 5]), fed([0, 2, 0, 1], [0, 1, 0, 4])] },
  { op: 'Pad', note: 'one axis', inputs: [x([2, 3, 2]), ints(1, 2), undefined, ints(-2)], opsets: [18, 23] },
  { op: 'Trilu', note: 'upper', inputs: [x([2, 4, 4], [2, 5, 5])], opsets: [14, 18, 23] },
  {
    op: 'Trilu',
    note: 'strictly lower',
    inputs: [x([3, 4]), index(-1)],
    attributes: { upper: 0 },
    opsets: [14, 18, 23],
  },
  {
    op: 'GatherND',
    note: 'elements, repeated',
    inputs: [x([3, 4]), { ...ints(0, 1, 2, 3, 0, 1), shape: [3, 2] }],
    opsets: [16, 18, 23],
  },
  { op: 'GatherND', note: 'rows', inputs: [x([3, 4, 2]), { ...ints(2, 0), shape: [2, 1] }], opsets: [16, 18, 23] },
  { op: 'ScatterND', note: 'rows', inputs: [x([4, 3]), { ...ints(3, 1), shape: [2, 1] }, x([2, 3])] },
  {
    op: 'ScatterND',
    note: 'elements, added',
    inputs: [x([3, 4]), { ...ints(0, 1, 2, 3, 0, 1), shape: [3, 2] }, x([3])],
    attributes: { reduction: 'add' },
    opsets: [16, 18, 23],
  },
  {
    op: 'TopK',
    note: 'last axis',
    inputs: [{ ...x([3, 6], [4, 6]), domain: 'grid' }, ints(2)],
    outputs: 2,
    integers: [1],
    flows: [0],
  },
  {
    op: 'TopK',
    note: 'smallest of an axis',
    inputs: [{ ...x([6, 2]), domain: 'grid' }, ints(3)],
    attributes: { axis: 0, largest: 0 },
    outputs: 2,
    integers: [1],
    flows: [0],
  },
  ...[
    { note: 'repeated', inputs: [x([2, 4]), { ...ints(0, 3, 3, -1, 1), shape: [1, 5] }], attributes: { axis: 1 } },
    { note: 'some rows, at run time', inputs: [x([4, 3]), { ...fed([0, 3, 1, 1], [3, 3, 0, 1]), shape: [2, 2] }] },
  ].map((spec): GradientCase => ({ op: 'GatherElements', opsets: [16, 18, 23], ...spec })),
  {
    op: 'ScatterElements',
    note: 'two places of each row',
    inputs: [x([3, 5]), { ...ints(0, 3, 1, 4, 2, 0), shape: [3, 2] }, x([3, 2])],
    attributes: { axis: 1 },
    opsets: [16, 18, 23],
  },

  {
    op: 'com.microsoft:RotaryEmbedding',
    note: 'halves, (B, S, H)',
    inputs: [x([2, 3, 8], [2, 5, 8]), index(0), frozen(x([6, 2])), frozen(x([6, 2]))],
    f32: true,
  },
  {
    op: 'com.microsoft:RotaryEmbedding',
    note: 'pairs, positions, part of a head',
    inputs: [
      x([2, 3, 16]),
      { kind: 'int', values: [0, 1, 2, 2, 1, 0], shape: [2, 3] },
      frozen(x([6, 2])),
      frozen(x([6, 2])),
    ],
    attributes: { interleaved: 1, num_heads: 2, rotary_embedding_dim: 4 },
    f32: true,
  },
  {
    op: 'RotaryEmbedding',
    note: '(B, h, S, d)',
    inputs: [x([1, 2, 3, 4]), frozen(x([6, 2])), frozen(x([6, 2])), { kind: 'int', values: [0, 1, 2], shape: [1, 3] }],
    opsets: [23],
    f32: true,
  },
]

export const GRADIENT_CASES = cases.map((spec) => ({ ...spec, opsets: spec.opsets ?? [13, 18, 23] }))

const perHead = x([1, 3, 4], [2, 66, 4])

/** Graphs of several nodes, for rules that look at neighboring nodes, and for sums of gradients. */
export const GRAPH_CASES: readonly GradientCase[] = [
  ...(['linear', 'gated', 'delta', 'gated_delta'] as const).map(
    (rule): GradientCase => ({
      op: 'LinearAttention',
      note: rule,
      f32: true,
      inputs: [
        x([1, 3, 4], [2, 66, 4]),
        x([1, 3, 4], [2, 66, 4]),
        x([1, 3, 12], [2, 66, 12]),
        rule.startsWith('gated') ? perHead : frozen(perHead),
        rule.endsWith('delta') ? perHead : frozen(perHead),
      ],
      build: (g, [query, key, value, decay, beta]) => {
        const of = (value: Value, size: number) => g.reshape(value, g.int([0, 0, size]))
        const [gate, share] = [g.neg(g.op('Exp', [decay])), g.op('Sigmoid', [beta])]
        const attributes = { q_num_heads: 2, kv_num_heads: 4, update_rule: rule }
        const given = [of(query, 4), of(key, 4), of(value, 12), '', gate, share]
        return g.node('com.microsoft:LinearAttention', given, attributes, 2).output[0]
      },
    }),
  ),
  {
    op: 'attention',
    note: 'keys swapped as a value',
    inputs: [x([2, 3, 4, 5], [3, 3, 6, 5]), x([2, 3, 4, 5], [3, 3, 6, 5]), x([2, 3, 4, 5], [3, 3, 6, 5])],
    build: (g, [query, key, value]) => {
      const scores = g.matmul(query, g.transpose(key, [0, 1, 3, 2]))
      return g.matmul(g.op('Softmax', [scores], { axis: -1 }), value)
    },
  },
  {
    op: 'attention',
    note: 'one key head for two query heads',
    inputs: [x([2, 2, 4, 5]), x([2, 1, 3, 5])],
    build: (g, [query, key]) => g.matmul(query, g.transpose(key, [0, 1, 3, 2])),
  },
  ...['Pow', 'Mul'].map((square) => ({
    op: 'RMS norm',
    note: `written out with ${square}`,
    inputs: [x([2, 3, 4], [5, 7, 4]), x([4])],
    build: (g: Builder, [input, gamma]: readonly Value[]) => {
      const squared = square === 'Pow' ? g.op('Pow', [input, g.float(2)]) : g.mul(input, input)
      const root = g.op('Sqrt', [g.add(g.reduceMean(squared, [-1]), g.float(0.01))])
      return g.mul(gamma, g.mul(input, g.div(g.float(1), root)))
    },
  })),
  {
    op: 'sum of squares',
    note: 'and the squares themselves',
    inputs: [x([2, 3, 4])],
    build: (g, [input]) => {
      const squared = g.mul(input, input)
      return g.mul(squared, g.reduceSum(squared, [1]))
    },
  },
  {
    op: 'rotation',
    note: 'by halves',
    inputs: [x([2, 3, 4], [5, 3, 4]), frozen(x([3, 4])), frozen(x([3, 4]))],
    build: (g, [input, cosine, sine]) => {
      const half = (start: number, end: number) => g.op('Slice', [input, g.int([start]), g.int([end]), g.int([2])])
      const turned = g.concat([g.neg(half(2, 4)), half(0, 2)], 2)
      return g.add(g.mul(input, cosine), g.mul(turned, sine))
    },
  },
]
