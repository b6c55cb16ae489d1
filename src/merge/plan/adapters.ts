// Turns the adapters of a merge into layers of one form, whose factors are ranges of a source, read when needed.

import { type ByteSource, MemorySource } from '../../core/base/bytes.js'
import { encodeWeights, requireWeightDtype, type WeightDtype } from '../../core/base/dtype.js'
import { attempt, type LowrankError, MismatchError, UnsupportedError } from '../../core/base/errors.js'
import { elementCount, type FloatArray, type Shaped, type Tensor } from '../../core/base/tensor.js'
import type { TensorInfo } from '../../files/safetensors.js'
import { scalingOf } from '../../lora/config.js'
import { convolutionShape, groupsRefusal } from '../../lora/kinds/convolution-factors.js'
import type { FactorView, ParameterView } from '../../lora/part.js'
import type { AdapterTensor } from '../../lora/peft/keys.js'
import { type OpenAdapter, type OpenOptions, openAdapter, tensorPlace, valueProblems } from '../../lora/peft/open.js'
import type { OpenPart } from '../../lora/peft/tensors.js'
import { isHeadModule } from '../../lora/peft/tied.js'
import { requireUnchangedBase } from '../../lora/requirements.js'
import { refuseWeighted, type WeightedAdapter } from '../weighted.js'

/** The place of a matrix in its source. It is plain data, so that plans can be sent to threads. */
export interface Factor {
  readonly name: string
  readonly source: number
  readonly offset: number
  readonly dtype: WeightDtype
  readonly rows: number
  readonly columns: number
  readonly slice?: FactorSlice
}

/** A part of a matrix: the rows from `firstRow` on, and their columns first, first + step, … */
export interface FactorSlice {
  readonly firstRow: number
  readonly first: number
  readonly step: number
}

export interface LayerFactors {
  readonly name: string
  readonly adapter: number
  readonly d: number
  readonly k: number
  readonly rank: number
  /** weight · s */
  readonly scale: number
  /** True for a linear layer, whose weight the base may store as (d, k) or (k, d). */
  readonly isLinear: boolean
  /**
   * True if the base stores this weight as (k, d). For a linear layer, it is the config's claim until the tensor is
   * found.
   */
  readonly isInputMajor: boolean
  /**
   * The stored shape: (d, k) or (k, d); for a convolution (d, in, *kernel), which is read as (d, in·K); for a bias (d);
   * for experts (E, d, k).
   */
  readonly shape: readonly number[]
  /** (r, k) */
  readonly a: Factor
  /** (d, r) */
  readonly b: Factor
  /** The tensor that changes: `weight`, `bias` (a weight with a single row), or the name of a parameter. */
  readonly tensor: string
  /** The number E of stacked experts, whose factors are a (E·r, k) and b (d, r·E); undefined for a matrix. */
  readonly experts: number | undefined
  /**
   * True if input and output embedding change together, `claimed` if the config says so (ensure_weight_tying) and the
   * base is not known yet. False for DoRA: its magnitudes differ.
   */
  readonly isTied: boolean | 'claimed'
  /** Which outputs of the tensor belong to the layer: rows, or columns if it is input-major. Default: all. */
  readonly region?: { readonly first: number; readonly count: number } | undefined
  /** DoRA's m / ‖W + s·B·A‖ (1, d), with which the sum is multiplied. Computed after the plan is made. */
  readonly scales: Factor | undefined
  readonly report?: string | undefined
}

export interface LayerMagnitude {
  readonly layer: LayerFactors
  /** m (d) */
  readonly magnitude: Factor
  readonly scales: Float64Array
}

/** Values that replace a tensor of the base, or some of its rows. */
export interface BaseReplacement {
  readonly adapter: number
  readonly tensor: string
  readonly source: number
  readonly info: TensorInfo
  readonly rows: readonly number[] | undefined
  /**
   * See {@link LayerFactors.isTied}. Even without ensure_weight_tying, rows of an input embedding also change the
   * output embedding, unless the adapter has rows of that too. So do whole tensors that PEFT did not train.
   */
  readonly isTied: boolean | 'claimed'
}

export interface WeightedPart {
  readonly adapter: OpenAdapter
  readonly weight: number
}

export interface GraphShare extends WeightedPart {
  readonly index: number
  readonly parts: readonly OpenPart[]
}

export type MergeParts = Pick<OpenAdapters, 'layers' | 'replacements'>

/** Opens all adapters of a merge. With `isTolerant`, problems of an adapter are collected instead of thrown. */
export async function openAdapters(
  inputs: readonly Required<WeightedAdapter>[],
  sign: 1 | -1 = 1,
  { isTolerant = false }: Pick<OpenOptions, 'isTolerant'> = {},
  sources: ByteSource[] = [],
): Promise<OpenAdapters> {
  const found = new OpenAdapters(sources)
  try {
    for (const { adapter, weight } of inputs) {
      const opened = await openAdapter(adapter, { isTolerant })
      found.adapters.push({ adapter: opened, weight: sign * weight })
      refuseWeighted(opened.parts(), sign * weight)
      found.add(opened, sign * weight)
    }
    if (found.adapters.every(({ adapter }) => adapter.parts().length === 0)) {
      found.problems.push(new MismatchError({ where: 'adapters', what: 'there is no layer to merge' }))
    }
    return found
  } catch (error) {
    await found.close()
    throw error
  }
}

/** Throws if a replaced value is not finite. Factors are checked later, when they are read. */
export async function requireFiniteReplacements({ replacements, sources }: OpenAdapters): Promise<void> {
  for (const { source, info } of replacements) {
    const [problem] = await valueProblems({ ...info, source: sources[source] })
    if (problem !== undefined) throw problem
  }
}

export class OpenAdapters {
  readonly adapters: WeightedPart[] = []
  readonly problems: LowrankError[] = []
  readonly layers: LayerFactors[] = []
  readonly magnitudes: LayerMagnitude[] = []
  readonly replacements: BaseReplacement[] = []
  readonly tasks = new Set<string>()
  /** The model classes for which the adapters were made, if the configs name them. */
  readonly classes = new Set<string>()
  readonly #numbers = new Map<ByteSource, number>()

  constructor(readonly sources: ByteSource[]) {}

  add(adapter: OpenAdapter, weight: number): void {
    const parts = adapter.parts()
    const { ensureWeightTying, taskType, peftFields } = adapter.config
    this.#note(() => requireUnchangedBase(adapter, 'merging'))
    const owner = { adapter: this.adapters.length - 1 }
    if (taskType !== undefined) this.tasks.add(taskType)
    const mapping = peftFields.auto_mapping as { base_model_class?: unknown } | null | undefined
    if (typeof mapping?.base_model_class === 'string') this.classes.add(mapping.base_model_class)
    const rowModules = parts.flatMap(({ kind, module }) => (kind === 'token-rows' ? [module] : []))
    // PEFT applies the rows of an input embedding to both uses, unless the output embedding has trained rows too.
    const isShared = ensureWeightTying || !rowModules.some(isHeadModule)
    const claim = ensureWeightTying && ('claimed' as const)
    for (const part of parts) {
      if (part.kind === 'replacement') {
        const { name, tensors } = part
        const placed = this.#place(tensors.weight)
        // PEFT also saves tensors that it did not train, such as resized embeddings. The base ties them, so both
        // change.
        const isTied = !part.isTrained || claim
        this.replacements.push({ ...owner, tensor: name, rows: undefined, isTied, ...placed })
      } else if (part.kind === 'token-rows') {
        const tensor = `${part.module}.weight`
        const placed = this.#place(part.tensors.weight)
        this.replacements.push({ ...owner, tensor, rows: part.indices, isTied: isShared, ...placed })
      } else if (part.kind === 'parameter') this.#note(() => this.#addExperts(part, weight))
      else this.#note(() => this.#addLayer(part, weight))
    }
  }

  async close(): Promise<void> {
    for (const { adapter } of this.adapters.splice(0)) await adapter.close()
  }

  #note(work: () => void): void {
    this.problems.push(...attempt(work).problems)
  }

  #place({ source, ...info }: AdapterTensor): { source: number; info: TensorInfo } {
    const known = this.#numbers.get(source)
    if (known !== undefined) return { source: known, info }
    const index = this.sources.push(source) - 1
    this.#numbers.set(source, index)
    return { source: index, info }
  }

  #factor(tensor: AdapterTensor): Factor {
    const { source, info } = this.#place(tensor)
    const { shape, offset } = info
    const name = tensorPlace(tensor)
    const dtype = requireWeightDtype(info.dtype, name, 'a factor of this type cannot be merged')
    const size = shape.length === 1 ? { rows: 1, columns: shape[0] } : matrixSize(shape)
    return { name, source, offset, dtype, ...size }
  }

  #factors({ config, tensors }: FactorView<AdapterTensor> | ParameterView<AdapterTensor>, weight: number) {
    const [a, b] = [this.#factor(tensors.weightA), this.#factor(tensors.weightB)]
    const [scale, isTied] = [weight * scalingOf(config), config.ensureWeightTying && ('claimed' as const)]
    const adapter = this.adapters.length - 1
    return { adapter, d: b.rows, k: a.columns, rank: config.rank, scale, a, b, isTied, scales: undefined }
  }

  #addLayer(part: FactorView<AdapterTensor>, weight: number): void {
    const { name, kind, config, tensors } = part
    const factors = this.#factors(part, weight)
    const { d, k } = factors
    const magnitude = tensors.magnitude && this.#factor(tensors.magnitude)
    // An embedding (V, D) is the weight of a layer with V inputs and D outputs, stored as (k, d).
    const isInputMajor = kind === 'embedding' || (kind === 'linear' && config.fanInFanOut)
    const shape = kind === 'convolution' ? convolutionWeight(tensors, name) : isInputMajor ? [k, d] : [d, k]
    const values = new Float64Array(magnitude === undefined ? 0 : d)
    const scales = magnitude && matrixFactor(`${name}: scales`, { data: values, shape: [1, d] }, this.sources)
    const isTied = magnitude === undefined && factors.isTied
    const stored = { isLinear: kind === 'linear', isInputMajor, shape, tensor: 'weight', experts: undefined }
    const layer = { ...factors, name, ...stored, isTied, scales }
    this.layers.push(layer)
    if (magnitude !== undefined) this.magnitudes.push({ layer, magnitude, scales: values })
    if (tensors.biasB === undefined) return
    // s·biasB is the product of the matrices 1 (1, 1) and biasB (1, d).
    const unit = matrixFactor(`${name}: 1`, { data: Float32Array.of(1), shape: [1, 1] }, this.sources)
    const row = { d: 1, k: d, rank: 1, isLinear: false, isInputMajor: false, shape: [d], tensor: 'bias' }
    this.layers.push({ ...layer, ...row, a: this.#factor(tensors.biasB), b: unit, scales: undefined })
  }

  #addExperts(part: ParameterView<AdapterTensor>, weight: number): void {
    const { name, module, experts } = part
    const factors = this.#factors(part, weight)
    const stored = { isLinear: false, isInputMajor: false, shape: [experts, factors.d, factors.k] }
    this.layers.push({ ...factors, name: module, tensor: name.slice(module.length + 1), ...stored, experts })
  }
}

/**
 * Returns the shape of a convolution's weight. Throws if it has groups. A checkpoint does not tell whether it is
 * dilated; if it is, it gets the same values as PEFT's merge would give it.
 */
function convolutionWeight({ weightA, weightB }: FactorView<Shaped>['tensors'], name: string): number[] {
  const { d, channels, kernel, groups } = convolutionShape(weightA.shape, weightB.shape, name)
  if (groups > 1) throw new UnsupportedError({ where: name, what: groupsRefusal(groups) })
  return [d, channels, ...kernel]
}

function matrixSize(shape: readonly number[]): { rows: number; columns: number } {
  return { rows: shape[0], columns: elementCount(shape.slice(1)) }
}

function matrixFactor(name: string, { data, shape }: Tensor<FloatArray>, sources: ByteSource[]): Factor {
  const dtype = data instanceof Float64Array ? 'fp64' : 'fp32'
  const bytes = encodeWeights(data, dtype)
  return { name, source: sources.push(new MemorySource(bytes, name)) - 1, offset: 0, dtype, ...matrixSize(shape) }
}
