// The adapters of a merge behind one form: layers whose factors are ranges of a source, read when their turn comes.

import { type ByteSource, MemorySource } from '../../base/bytes.js'
import { encodeWeights, isFiniteStored, requireWeightDtype, type WeightDtype } from '../../base/dtype.js'
import { attempt, type LowrankError, MismatchError, UnsupportedError } from '../../base/errors.js'
import { elementCount, type FloatArray, type Shaped, type Tensor } from '../../base/tensor.js'
import type { TensorInfo } from '../../formats/safetensors.js'
import { scalingOf } from '../../lora/config.js'
import { convolutionShape, groupsRefusal } from '../../lora/kinds/convolution-factors.js'
import type { FactorView, ParameterView } from '../../lora/part.js'
import { notFinite } from '../../lora/part.js'
import { requireAlwaysOn, requireUnchangedBase } from '../../lora/requirements.js'
import type { AdapterTensor } from '../../peft/keys.js'
import { type OpenAdapter, type OpenOptions, openAdapter, tensorPlace } from '../../peft/open.js'
import type { OpenPart } from '../../peft/tensors.js'
import { isHeadModule } from '../../peft/tied.js'
import { refuseWeighted, type WeightedAdapter } from '../weighted.js'

const READ_BYTES = 1 << 20

/** A matrix, or a tensor read as one, that stays in its source. Plain data, so that plans can be sent to threads. */
export interface Factor {
  readonly name: string
  readonly source: number
  readonly offset: number
  readonly dtype: WeightDtype
  readonly rows: number
  readonly columns: number
  readonly slice?: FactorSlice
}

/** Rows from `firstRow` on, and of their columns first, first + step, … */
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
  /** True for a linear layer: its base may store the weight either way round. */
  readonly isLinear: boolean
  /** The base stores this weight as (k, d); of a linear layer what its config says, until its tensor is known. */
  readonly isInputMajor: boolean
  /**
   * As stored: (d, k), (k, d), a convolution's (d, in, *kernel) read as (d, in·K), a bias's (d), or experts' (E, d, k).
   */
  readonly shape: readonly number[]
  /** (r, k) */
  readonly a: Factor
  /** (d, r) */
  readonly b: Factor
  /** `weight`, `bias`, which is a weight of one row, or a parameter's own name. */
  readonly tensor: string
  /** E of stacked experts, whose factors are a (E·r, k) and b (d, r·E); undefined for a matrix. */
  readonly experts: number | undefined
  /** Input and output embeddings change alike (ensure_weight_tying). DoRA never does: its magnitudes differ. */
  readonly isTied: boolean
  /** Outputs of the stored tensor that are the layer's: rows, or columns if it is input-major. Undefined: all. */
  readonly region?: { readonly first: number; readonly count: number } | undefined
  /** DoRA's m / ‖W + s·B·A‖ (1, d), by which the sum is multiplied; computed when the plan is known. */
  readonly scales: Factor | undefined
  readonly report?: string | undefined
}

export interface LayerMagnitude {
  readonly layer: LayerFactors
  /** m (d) */
  readonly magnitude: Factor
  readonly scales: Float64Array
}

/** Values in the place of a tensor of the base, or of some of its rows. */
export interface BaseReplacement {
  readonly adapter: number
  readonly tensor: string
  readonly source: number
  readonly info: TensorInfo
  readonly rows: readonly number[] | undefined
  /** As {@link LayerFactors.isTied}; rows of an input embedding are for both uses without ensure_weight_tying too. */
  readonly isTied: boolean
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

/** Opens all adapters of a merge. With `isTolerant`, what is wrong with an adapter is passed over. */
export async function openAdapters(
  inputs: readonly Required<WeightedAdapter>[],
  sign: 1 | -1 = 1,
  { strict = false, isTolerant = false }: Pick<OpenOptions, 'strict' | 'isTolerant'> = {},
  sources: ByteSource[] = [],
): Promise<OpenAdapters> {
  const found = new OpenAdapters(sources)
  try {
    for (const { adapter, weight } of inputs) {
      const opened = await openAdapter(adapter, { strict, isTolerant })
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

/** Factors are looked at when they are read. */
export async function requireFiniteReplacements({ replacements, sources }: OpenAdapters): Promise<void> {
  for (const { source: index, info } of replacements) {
    const { name, dtype, offset, byteLength } = info
    const source = sources[index]
    for (let at = 0; at < byteLength; at += READ_BYTES) {
      const bytes = await source.read(offset + at, Math.min(READ_BYTES, byteLength - at))
      if (isFiniteStored(bytes, dtype)) continue
      throw notFinite(source.name === name ? name : `${source.name}: ${name}`)
    }
  }
}

export class OpenAdapters {
  readonly adapters: WeightedPart[] = []
  readonly problems: LowrankError[] = []
  readonly layers: LayerFactors[] = []
  readonly magnitudes: LayerMagnitude[] = []
  readonly replacements: BaseReplacement[] = []
  /** task_type of the configs. */
  readonly tasks = new Set<string>()
  /** Classes of the models that they were made for, where the configs name them. */
  readonly classes = new Set<string>()
  readonly #numbers = new Map<ByteSource, number>()

  constructor(readonly sources: ByteSource[]) {}

  add(adapter: OpenAdapter, weight: number): void {
    const parts = adapter.parts()
    const { ensureWeightTying, taskType, peftFields } = adapter.config
    this.#note(() => requireUnchangedBase(adapter, 'merging'))
    this.#note(() => requireAlwaysOn(adapter, 'merging'))
    const own = { adapter: this.adapters.length - 1 }
    if (taskType !== undefined) this.tasks.add(taskType)
    const mapping = peftFields.auto_mapping as { base_model_class?: unknown } | null | undefined
    if (typeof mapping?.base_model_class === 'string') this.classes.add(mapping.base_model_class)
    const rowModules = parts.flatMap(({ kind, module }) => (kind === 'token-rows' ? [module] : []))
    // PEFT gives both uses of tied embeddings the rows of one, but where the output embedding has rows of its own.
    const isShared = ensureWeightTying || !rowModules.some(isHeadModule)
    for (const part of parts) {
      if (part.kind === 'replacement') {
        const { name, tensors } = part
        const placed = this.#place(tensors.weight)
        // PEFT saves some tensors along, such as resized embeddings. They belong to the base, which ties them.
        const isTied = ensureWeightTying || !part.isTrained
        this.replacements.push({ ...own, tensor: name, rows: undefined, isTied, ...placed })
      } else if (part.kind === 'token-rows') {
        const tensor = `${part.module}.weight`
        const placed = this.#place(part.tensors.weight)
        this.replacements.push({ ...own, tensor, rows: part.indices, isTied: isShared, ...placed })
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
    const [scale, isTied] = [weight * scalingOf(config), config.ensureWeightTying]
    const adapter = this.adapters.length - 1
    return { adapter, d: b.rows, k: a.columns, rank: config.rank, scale, a, b, isTied, scales: undefined }
  }

  #addLayer(part: FactorView<AdapterTensor>, weight: number): void {
    const { name, kind, config, tensors } = part
    const own = this.#factors(part, weight)
    const { d, k } = own
    const magnitude = tensors.magnitude && this.#factor(tensors.magnitude)
    // An embedding (V, D) is a weight of D outputs and V inputs that is stored the other way round.
    const isInputMajor = kind === 'embedding' || (kind === 'linear' && config.fanInFanOut)
    const shape = kind === 'convolution' ? convolutionWeight(tensors, name) : isInputMajor ? [k, d] : [d, k]
    const values = new Float64Array(magnitude === undefined ? 0 : d)
    const scales = magnitude && matrixFactor(`${name}: scales`, { data: values, shape: [1, d] }, this.sources)
    const isTied = own.isTied && magnitude === undefined
    const stored = { isLinear: kind === 'linear', isInputMajor, shape, tensor: 'weight', experts: undefined }
    const layer = { ...own, name, ...stored, isTied, scales }
    this.layers.push(layer)
    if (magnitude !== undefined) this.magnitudes.push({ layer, magnitude, scales: values })
    if (tensors.biasB === undefined) return
    // s·biasB is the product of 1 (1, 1) and biasB (1, d).
    const one = matrixFactor(`${name}: one`, { data: Float32Array.of(1), shape: [1, 1] }, this.sources)
    const row = { d: 1, k: d, rank: 1, isLinear: false, isInputMajor: false, shape: [d], tensor: 'bias' }
    this.layers.push({ ...layer, ...row, a: this.#factor(tensors.biasB), b: one, scales: undefined })
  }

  #addExperts(part: ParameterView<AdapterTensor>, weight: number): void {
    const { name, module, experts } = part
    const own = this.#factors(part, weight)
    const stored = { isLinear: false, isInputMajor: false, shape: [experts, own.d, own.k] }
    this.layers.push({ ...own, name: module, tensor: name.slice(module.length + 1), ...stored, experts })
  }
}

/** One that is dilated (a checkpoint does not say) gets what PEFT's merge gives it. Throws where there are groups. */
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
