// Turns linear layers into their form for training: 2-D Gemms over the rows of all sequences, with branches y' = y +
// s·(drop(x)·Aᵀ)·Bᵀ whose factors are graph inputs. Unlike a MatMul, a Gemm can read a transposed weight.

import { groupBy } from '../../core/base/group.js'
import { adaptNodes } from '../../model/inject/inject.js'
import { siteInput } from '../../model/inject/sites.js'
import { DEQUANTIZERS } from '../../model/match/forms/dequantize.js'
import { GEMM, MATMUL } from '../../model/match/forms/float-product.js'
import type { Form } from '../../model/match/forms/form.js'
import type { Linear } from '../../model/match/linears.js'
import { ownBiasInput } from '../../model/match/parameters.js'
import type { RowOrder } from '../../model/place/experts.js'
import { DataType, type NodeProto } from '../../onnx/format/tensors.js'
import { intAttribute, makeAttribute } from '../../onnx/view/attributes.js'
import { type Builder, sharedValue, type Value } from '../../onnx/view/builder.js'
import type { Graph } from '../../onnx/view/graph.js'
import { sourceOf } from '../../onnx/view/patterns.js'
import { valueInfo } from '../../onnx/view/value-info.js'
import { type DropoutMask, keepProbability } from './dropout.js'
import { ofExperts, type TrainedExperts } from './trainable-experts.js'

export interface Branch {
  readonly linear: Linear
  readonly rank: number
  readonly scaling: number
  /** For DoRA: Σ w² over each row of the module's base weight, (d). */
  readonly baseSquares?: Float64Array | undefined
  /** The outputs of the module that the layer computes. Default: all. */
  readonly part?: { readonly start: number; readonly end: number } | undefined
  /** For a layer of an expert: the parameter whose factors hold those of the layer. */
  readonly expert?: { readonly of: TrainedExperts; readonly index: number; readonly order: RowOrder } | undefined
}

export function magnitudeInput(module: string): string {
  return `lora/${module}/magnitude`
}

/** A lower bound for squared norms, which rounding could make negative. */
const LEAST_SQUARE = 1e-24

export class TrainableLinears {
  /** Values that several layers read. */
  readonly #shared = new Map<string, Value>()
  readonly #experts = new Map<string, ReturnType<typeof ofExperts>>()
  readonly masks: DropoutMask[] = []
  /** DoRA's norms, which gradients do not pass, as in PEFT. */
  readonly constants: Value[] = []

  constructor(
    private readonly graph: Graph,
    private readonly g: Builder,
  ) {}

  /** Makes a layer compute rows: (…, k) → (rows, k) → (rows, d) → (…, d). A Gemm already does. */
  toRows(linear: Linear): Linear {
    const { node, k, form } = linear
    if (form === GEMM || node.opType === 'Gemm') return linear
    if (node !== linear.last) return this.#outputToRows(linear)
    const [x, y] = [node.input[0], node.output[0]]
    const rows = this.#rowsOf(x, k)
    const rowForm = this.#readRows(linear, rows)
    const output = this.graph.putBehind(y, (product) => this.g.reshape(product, this.#outputShape(linear, x)), 'rows')
    return { ...linear, form: rowForm, input: rows, output }
  }

  #outputToRows(linear: Linear): Linear {
    const { last, input, k, d, fused } = linear
    const g = this.g
    let output = ''
    const turn = (product: Value) => {
      output = g.reshape(product, g.int([-1, fused?.width ?? d]))
      return g.reshape(output, this.#outputShape(linear, input))
    }
    this.graph.putBehind(last.output[0], turn, 'product')
    return { ...linear, last: this.graph.producer(output) as NodeProto, input: this.#rowsOf(input, k), output }
  }

  /** Appends nodes that compute the shape (…, d) of a product with x (…, k). */
  #outputShape({ d, fused }: Linear, x: Value): Value {
    const g = this.g
    const leading = sharedValue(this.#shared, `leading/${x}`, () =>
      g.op('Slice', [g.shape(x), g.int([0]), g.int([-1])]),
    )
    return g.concat([leading, g.int([fused?.width ?? d])], 0)
  }

  /**
   * Moves the Gather `choice` of rows from after a layer to before it: (rows, k) → (chosen, k) → (chosen, d). Returns
   * the layer and the rows before the Gather.
   */
  chooseRows(linear: Linear, choice: NodeProto): { linear: Linear; all: Value } {
    const { node, k } = linear
    const isGemm = node.opType === 'Gemm'
    const all = isGemm ? node.input[0] : this.#rowsOf(node.input[0], k)
    const moved = this.g.node('Gather', [all, choice.input[1]], { axis: 0 })
    moved.metadataProps = choice.metadataProps
    const [chosen] = moved.output
    return { linear: { ...linear, form: this.#readRows(linear, chosen), input: chosen }, all }
  }

  /** Lets a layer read rows, and returns its form: a MatMul becomes a Gemm. */
  #readRows({ node, form }: Linear, rows: Value): Form {
    if (form !== MATMUL) {
      this.graph.setInputs(node, [rows, ...node.input.slice(1)])
      return form
    }
    const { value: weight, isSwapped } = sourceOf(this.graph, node.input[1], ['Transpose'])
    node.opType = 'Gemm'
    node.attribute = [makeAttribute('transB', isSwapped ? 1 : 0)]
    this.graph.setInputs(node, [rows, weight])
    return GEMM
  }

  /** Adds the branches, each with a separate dropout mask, as in PEFT. */
  adapt(branches: readonly Branch[], dropout: number): void {
    const g = this.g
    const byLinear = new Map(branches.map((branch) => [branch.linear, branch]))
    const keep = keepProbability(dropout)
    const lows = dropout > 0 ? new Map<Linear, Value>() : this.#joinedLows(branches)
    adaptNodes(
      this.graph,
      g,
      branches.map(({ linear }) => linear),
      (linear, base) => {
        const branch = byLinear.get(linear) as Branch
        const { scaling, baseSquares } = branch
        const [weightA, weightB] = this.#factors(branch)
        const x = dropout > 0 ? this.#drop(branch) : linear.input
        if (baseSquares !== undefined && dropout > 0) return this.#scaledOfDropped(branch, base as Value, x, keep)
        // With a dropout of 1, all inputs are dropped, and 1 / keep would be infinite.
        const alpha = { float: keep === 0 ? 0 : scaling / keep }
        const low = lows.get(linear) ?? this.#low(x, weightA)
        const sum = g.op('Gemm', base === undefined ? [low, weightB] : [low, weightB, base], { alpha })
        return baseSquares === undefined ? sum : this.#scaled(branch, sum)
      },
      (linear) => byLinear.get(linear)?.baseSquares !== undefined,
    )
  }

  /** (rows, k) @ (k, r) */
  #low(x: Value, weightA: Value): Value {
    return this.g.op('Gemm', [x, weightA], { transB: 1 })
  }

  /** Computes x·Aᵀ of all layers that read x in one product with the stacked A, so that x is read once. */
  #joinedLows(branches: readonly Branch[]): Map<Linear, Value> {
    const g = this.g
    const lows = new Map<Linear, Value>()
    for (const [x, readers] of groupBy(branches, ({ linear }) => linear.input)) {
      if (readers.length === 1) continue
      // Parts of one module have the same A.
      const ranks = new Map(readers.map((branch) => [this.#factors(branch)[0], branch.rank]))
      const weights = [...ranks.keys()]
      const low = this.#low(x, weights.length === 1 ? weights[0] : g.concat(weights, 0))
      const parts =
        weights.length === 1
          ? [low]
          : g.node('Split', [low, g.int([...ranks.values()])], { axis: 1 }, weights.length).output
      for (const branch of readers) lows.set(branch.linear, parts[weights.indexOf(this.#factors(branch)[0])])
    }
    return lows
  }

  /** c ⊙ y + (1 − c) ⊙ b, with y = x·(W + s·B·A)ᵀ + b (Liu et al. 2024, arXiv 2402.09353, equation 5). */
  #scaled(branch: Branch, y: Value): Value {
    const g = this.g
    const scale = this.#doraScale(branch)
    const bias = this.#ownBias(branch.linear)
    const scaled = g.mul(y, scale)
    return bias === undefined ? scaled : g.add(scaled, g.sub(bias, g.mul(scale, bias)))
  }

  /** As in PEFT, with x' = drop(x): y + (c − 1) ⊙ x'·Wᵀ + c ⊙ s·(x'·Aᵀ)·Bᵀ. The base's y is not dropped. */
  #scaledOfDropped(branch: Branch, y: Value, kept: Value, keep: number): Value {
    const g = this.g
    const { linear, scaling } = branch
    const [weightA, weightB] = this.#factors(branch)
    const growth = keep === 0 ? 0 : 1 / keep
    const ofBase = g.mul(this.#ofWeight(linear, kept), g.float(growth))
    const low = g.op('Gemm', [kept, weightA], { transB: 1 })
    const sum = g.op('Gemm', [low, weightB, ofBase], { alpha: { float: scaling * growth } })
    const scaled = g.mul(sum, this.#doraScale(branch))
    return g.add(y, g.sub(scaled, ofBase))
  }

  /**
   * c = m / ‖W + s·B·A‖ (d), where the norm has no gradient (section 4.3). No matrix of the weight's size is made: a
   * row of W + s·B·A has the square w·w + 2s·b·(A·w) + s²·b·(A·Aᵀ)·b, with rows w of W and b of B.
   */
  #doraScale(branch: Branch): Value {
    const g = this.g
    const { linear, scaling, part, baseSquares = new Float64Array() } = branch
    const [weightA, weightB] = this.#factors(branch)
    const ofBase = baseSquares.slice(part?.start, part?.end)
    const crossed = g.reduceSum(g.mul(weightB, this.#ofWeight(linear, weightA)), [0], 0)
    const grown = g.op('Gemm', [g.op('Gemm', [weightA, weightA], { transB: 1 }), weightB])
    const adapterSquares = g.reduceSum(g.mul(weightB, grown), [0], 0)
    const added = g.add(g.mul(crossed, g.float(2 * scaling)), g.mul(adapterSquares, g.float(scaling * scaling)))
    const squares = g.add(g.float([...ofBase], [linear.d]), added)
    const norm = g.op('Sqrt', [g.op('Max', [squares, g.float(LEAST_SQUARE)])])
    this.constants.push(norm)
    const magnitude = magnitudeInput(linear.name)
    return g.div(part === undefined ? magnitude : g.slice(magnitude, part.start, part.end, 0), norm)
  }

  /** A (r, k) and Bᵀ (r, d), or the columns of Bᵀ for a part of a module. */
  #factors({ linear: { name }, part, expert }: Branch): [weightA: Value, weightB: Value] {
    const [weightA, weightB] = expert ? this.#ofExpert(expert) : [siteInput(name, 'A'), siteInput(name, 'B')]
    if (part === undefined) return [weightA, weightB]
    const columns = () => this.g.slice(weightB, part.start, part.end, 1)
    return [weightA, sharedValue(this.#shared, `columns/${weightB}/${part.start}`, columns)]
  }

  #ofExpert({ of, index, order }: NonNullable<Branch['expert']>): [weightA: Value, weightB: Value] {
    const all = this.#experts.get(of.name) ?? ofExperts(this.g, of, order)
    this.#experts.set(of.name, all)
    return [all.weightA[index], all.weightB[index]]
  }

  /** Multiplies rows (r, k) by the layer's weight: (r, d). */
  #ofWeight(linear: Linear, rows: Value): Value {
    const g = this.g
    const { node, form, fused, d } = linear
    const isGemm = node.opType === 'Gemm'
    const dequantizer = DEQUANTIZERS[form.name]
    const weight = dequantizer?.whole(g, linear) ?? node.input[1]
    const isTransposed = dequantizer === undefined && isGemm ? intAttribute(node, 'transB', 0) === 1 : linear.transposed
    const product = g.op('Gemm', [rows, weight], { transB: isTransposed ? 1 : 0 })
    return fused === undefined ? product : g.slice(product, fused.start, fused.start + d, 1)
  }

  /** (d) */
  #ownBias({ node, fused, d, bias: added }: Linear): Value | undefined {
    const input = ownBiasInput(node)
    const bias = added ?? (input === undefined ? '' : (node.input[input] ?? ''))
    if (bias === '') return undefined
    return fused === undefined ? bias : this.g.slice(bias, fused.start, fused.start + d, 0)
  }

  /** Drops elements of x. The branch's scaling includes 1/(1 − p). Parts of one module share a mask. */
  #drop({ linear: { name, input, k }, part }: Branch): Value {
    const dropped = () => {
      const mask = { input: this.graph.freshName(`lora/${name}/dropout`), of: input, k }
      this.masks.push(mask)
      this.graph.inputs.push(valueInfo(mask.input, DataType.BOOL, [`rows ${mask.input}`, k]))
      return this.g.mul(input, this.g.cast(mask.input, DataType.FLOAT))
    }
    return part === undefined ? dropped() : sharedValue(this.#shared, `dropped/${name} ${input}`, dropped)
  }

  /** Reshapes x (…, k) to (rows, k). */
  #rowsOf(x: Value, k: number): Value {
    return sharedValue(this.#shared, `rows/${x}`, () => this.g.reshape(x, this.g.int([-1, k])))
  }
}
