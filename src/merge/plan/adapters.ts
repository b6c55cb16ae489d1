// The adapters of a merge behind one form: layers whose factors are ranges of a source, read when their tensor's turn comes,
// so that memory does not grow with the adapter.

import { type ByteSource, MemorySource } from '../../base/bytes.js'
import { decodeWeights, encodeWeights, type WeightDtype } from '../../base/dtype.js'
import { MismatchError, type OnProblem, throwProblem, UnsupportedError } from '../../base/errors.js'
import { elementCount, type FloatArray, isAllFinite, type Tensor } from '../../base/tensor.js'
import { isWeightDtype, type TensorInfo } from '../../formats/safetensors.js'
import { LoraAdapter } from '../../lora/adapter.js'
import { type LoraConfig, scalingOf } from '../../lora/config.js'
import { notFinite } from '../../lora/factors.js'
import { convolutionShape, groupsRefusal } from '../../lora/kinds/convolution-factors.js'
import { EmbeddingLora } from '../../lora/kinds/embedding.js'
import { LoraLayer } from '../../lora/layer.js'
import { requireOwnLayers, requireUnchangedBase } from '../../lora/plain.js'
import type { StoredTensor } from '../../lora/replacements.js'
import { type AdapterFile, type LoadOptions, openAdapter } from '../../peft/adapter-folder.js'
import type { LayerTensors } from '../../peft/tensors.js'
import { isHeadModule } from '../../peft/tied.js'
import { requireMatched } from '../../peft/unmatched.js'
import { type AdapterInput, refuseWeighted, weighted, weightedError } from '../weighted.js'

const READ_BYTES = 1 << 20

/** A matrix (rows, columns), or a tensor read as one, that stays in its source. Plain data, so that plans can be sent to threads. */
export interface Factor {
  /** For messages. */
  readonly name: string
  /** Which of the adapters' sources holds it. */
  readonly source: number
  readonly offset: number
  readonly dtype: WeightDtype
  readonly rows: number
  readonly columns: number
  /** What of it is meant; undefined: all. */
  readonly slice?: FactorSlice
}

/** Rows from `firstRow` on, and of their columns first, first + step, … */
export interface FactorSlice {
  readonly firstRow: number
  readonly rows: number
  readonly first: number
  readonly step: number
}

/** One layer of one adapter. */
export interface LayerFactors {
  readonly name: string
  readonly d: number
  readonly k: number
  readonly rank: number
  /** weight · s */
  readonly scale: number
  /** Of a linear layer, whose base may store its weight either way round. */
  readonly isLinear: boolean
  /** The base stores this weight as (k, d); of a linear layer what its config says, until its tensor is known. */
  readonly isInputMajor: boolean
  /** As the base stores it: (d, k) or (k, d); a convolution's (d, in, *kernel), read as (d, in·K); a bias's (d); a parameter's, until its tensor is known, (E, d, k). */
  readonly shape: readonly number[]
  /** (r, k) */
  readonly a: Factor
  /** (d, r) */
  readonly b: Factor
  /** Which tensor of the module it changes: `weight`, `bias`, which is a weight of one row, or a parameter's own name. */
  readonly tensor: string
  /** E of a parameter that stacks experts, whose factors are a (E·r, k) and b (d, r·E); undefined for a matrix. */
  readonly experts: number | undefined
  /**
   * Its adapter changes input and output embeddings that are tied alike (ensure_weight_tying). DoRA never does: its magnitudes are
   * the one's columns and the other's rows.
   */
  readonly isTied: boolean
  /** Rows of the stored tensor that are the layer's weight; absent: all. */
  readonly region?: { readonly first: number; readonly count: number } | undefined
  /** DoRA's m / ‖W + s·B·A‖ (1, d), by which the sum is multiplied; computed when the plan is known. */
  readonly scales: Factor | undefined
}

/** A DoRA layer, and where its scales go. */
export interface LayerMagnitude {
  readonly layer: LayerFactors
  /** m (d) */
  readonly magnitude: Factor
  readonly scales: Float64Array
}

/** What takes the place of a tensor of the base, or of some of its rows. */
export interface BaseReplacement {
  /** The base's tensor, as the adapter names it. */
  readonly tensor: string
  /** Which of the adapters' sources holds the new values, at `info`. */
  readonly source: number
  readonly info: TensorInfo
  /** Rows of the base's tensor; undefined for all of it. */
  readonly rows: readonly number[] | undefined
  /** As {@link LayerFactors.isTied}; rows of an input embedding are for both uses without ensure_weight_tying too. */
  readonly isTied: boolean
}

/** The parts of all adapters of a merge, and the sources that hold them. */
export interface OpenAdapters {
  readonly layers: readonly LayerFactors[]
  readonly magnitudes: readonly LayerMagnitude[]
  readonly replacements: readonly BaseReplacement[]
  readonly sources: readonly ByteSource[]
  close(): Promise<void>
}

/**
 * Opens all adapters of a merge. Layers come in the adapters' order.
 *
 * @param sign −1 to take adapters out again
 * @param onProblem as openAdapter's
 * @throws what openAdapter throws; ConfigError when a weight is not usable, MismatchError when there is nothing to merge,
 *   UnsupportedError when a part that is no sum would be weighted or taken out again
 */
export async function openAdapters(
  inputs: readonly AdapterInput[],
  sign: 1 | -1 = 1,
  onProblem: OnProblem = throwProblem,
  { strict = false }: Pick<LoadOptions, 'strict'> = {},
): Promise<OpenAdapters> {
  const closers: (() => Promise<void>)[] = []
  const close = async () => {
    for (const closeOne of closers.splice(0)) await closeOne()
  }
  try {
    const found = new FoundParts()
    for (const [i, input] of inputs.entries()) {
      const { adapter, weight } = weighted(input, i)
      if (adapter instanceof LoraAdapter) {
        requireUnchangedBase(adapter, 'merging')
        requireOwnLayers(adapter, 'merging')
        if (strict) requireMatched(adapter, `adapter ${i + 1}`)
        refuseWeighted(adapter.parts(), sign * weight)
        found.addAdapter(adapter, sign * weight)
      } else {
        const opened = await openAdapter(adapter, onProblem, { strict })
        closers.push(opened.close)
        requireUnchangedBase(opened, 'merging')
        requireOwnLayers(opened, 'merging')
        refuseWeighted(opened.parts(), sign * weight)
        found.addFile(opened, sign * weight)
      }
    }
    const { layers, magnitudes, replacements, sources } = found
    if (layers.length === 0 && replacements.length === 0) {
      throw new MismatchError({ where: 'adapters', what: 'there is no layer to merge' })
    }
    return { layers, magnitudes, replacements, sources, close }
  } catch (error) {
    await close()
    throw error
  }
}

/**
 * Looks at what takes the place of the base's values; factors are looked at when they are read.
 *
 * @throws NumericError naming the tensor that holds a value that is not finite
 */
export async function requireFiniteReplacements({ replacements, sources }: OpenAdapters): Promise<void> {
  for (const { source: index, info } of replacements) {
    const { name, dtype, offset, byteLength } = info
    if (!isWeightDtype(dtype)) continue
    const source = sources[index]
    for (let at = 0; at < byteLength; at += READ_BYTES) {
      const bytes = await source.read(offset + at, Math.min(READ_BYTES, byteLength - at))
      if (isAllFinite(decodeWeights(bytes, dtype))) continue
      throw notFinite(source.name === name ? name : `${source.name}: ${name}`)
    }
  }
}

/** Where a layer's tensors are. */
interface LayerParts {
  name: string
  config: LoraConfig
  kind: LayerTensors['kind']
  /** A's and B's. */
  shapes: readonly [a: readonly number[], b: readonly number[]]
  a: Factor
  b: Factor
  magnitude: Factor | undefined
  biasB: Factor | undefined
}

/** Where a parameter's tensors are. */
interface ParameterParts {
  name: string
  config: LoraConfig
  experts: number
  a: Factor
  b: Factor
}

class FoundParts {
  readonly layers: LayerFactors[] = []
  readonly magnitudes: LayerMagnitude[] = []
  readonly replacements: BaseReplacement[] = []
  readonly sources: ByteSource[] = []

  addAdapter(adapter: LoraAdapter, weight: number): void {
    const { sources } = this
    for (const [name, layer] of [...adapter, ...adapter.embeddings, ...adapter.convolutions]) {
      const { config, weightA, weightB, magnitude } = layer
      const isEmbedding = layer instanceof EmbeddingLora
      const vector = (label: string, data: FloatArray | undefined) =>
        data && matrixFactor(`${name}.${label}`, { data, shape: [1, data.length] }, sources)
      this.#addLayer(weight, {
        name,
        config,
        kind: isEmbedding ? 'embedding' : layer instanceof LoraLayer ? 'linear' : 'convolution',
        shapes: [weightA.shape, weightB.shape],
        a: matrixFactor(`${name}.weightA`, weightA, sources),
        b: matrixFactor(`${name}.weightB`, weightB, sources),
        magnitude: vector('magnitude', magnitude),
        biasB: vector('biasB', isEmbedding ? undefined : layer.biasB),
      })
    }
    for (const [name, { config, experts, weightA, weightB }] of adapter.experts) {
      const a = matrixFactor(`${name}.weightA`, weightA, sources)
      this.#addParameter(weight, { name, config, experts, a, b: matrixFactor(`${name}.weightB`, weightB, sources) })
    }
    const add = (tensor: string, isTied: boolean, { dtype, shape, data }: StoredTensor, rows?: readonly number[]) => {
      const source = sources.push(new MemorySource(data, tensor)) - 1
      const info = { name: tensor, dtype, shape, offset: 0, byteLength: data.byteLength }
      this.replacements.push({ tensor, source, info, rows, isTied })
    }
    const { ensureWeightTying } = adapter.config
    for (const [tensor, stored] of adapter.replacements) add(tensor, ensureWeightTying, stored)
    const isShared = ensureWeightTying || areRowsShared(adapter.tokenRows.keys())
    for (const [module, stored] of adapter.tokenRows) add(`${module}.weight`, isShared, stored, stored.indices)
  }

  addFile(
    { file: { source }, config, layers, parameters, replacements, tokenRows }: AdapterFile,
    weight: number,
  ): void {
    const index = this.sources.push(source) - 1
    const factor = (info: TensorInfo) => tensorFactor(source, index, info)
    for (const { name, kind, config: own, A, B, magnitude, biasB } of layers) {
      this.#addLayer(weight, {
        name,
        config: own,
        kind,
        shapes: [A.shape, B.shape],
        a: factor(A),
        b: factor(B),
        magnitude: magnitude && factor(magnitude),
        biasB: biasB && factor(biasB),
      })
    }
    for (const { name, config: own, experts, A, B } of parameters) {
      this.#addParameter(weight, { name, config: own, experts, a: factor(A), b: factor(B) })
    }
    const isTied = config.ensureWeightTying
    for (const [tensor, { info }] of replacements) {
      this.replacements.push({ tensor, source: index, info, rows: undefined, isTied })
    }
    const isShared = isTied || areRowsShared(tokenRows.keys())
    for (const [module, { info, indices }] of tokenRows) {
      this.replacements.push({ tensor: `${module}.weight`, source: index, info, rows: indices, isTied: isShared })
    }
  }

  #addLayer(weight: number, { name, kind, config, shapes, a, b, magnitude, biasB }: LayerParts): void {
    const scale = weight * scalingOf(config)
    const [d, k, { rank }] = [b.rows, a.columns, config]
    // An embedding (V, D) is a weight of D outputs and V inputs that is stored the other way round.
    const isInputMajor = kind === 'embedding' || (kind === 'linear' && config.fanInFanOut)
    const shape = kind === 'convolution' ? convolutionWeight(shapes, name) : isInputMajor ? [k, d] : [d, k]
    const values = new Float64Array(magnitude === undefined ? 0 : d)
    const scales = magnitude && matrixFactor(`${name}: scales`, { data: values, shape: [1, d] }, this.sources)
    const stored = { isLinear: kind === 'linear', isInputMajor, shape }
    const isTied = config.ensureWeightTying && magnitude === undefined
    const matrix = { tensor: 'weight', experts: undefined, isTied }
    const layer = { name, d, k, rank, scale, ...stored, a, b, ...matrix, scales }
    this.layers.push(layer)
    if (magnitude !== undefined) {
      if (weight !== 1) throw weightedError(name, 'a DoRA layer', weight)
      this.magnitudes.push({ layer, magnitude, scales: values })
    }
    if (biasB === undefined) return
    // s·biasB is the product of 1 (1, 1) and biasB (1, d).
    const one = matrixFactor(`${name}: one`, { data: Float32Array.of(1), shape: [1, 1] }, this.sources)
    const bias = {
      d: 1,
      k: d,
      rank: 1,
      isLinear: false,
      isInputMajor: false,
      shape: [d],
      a: biasB,
      b: one,
      tensor: 'bias',
      experts: undefined,
      isTied,
      scales: undefined,
    }
    this.layers.push({ name, scale, ...bias })
  }

  #addParameter(weight: number, { name: full, config, experts, a, b }: ParameterParts): void {
    const at = full.lastIndexOf('.')
    const [name, tensor] = [full.slice(0, at), full.slice(at + 1)]
    const scale = weight * scalingOf(config)
    const [d, k, { rank }] = [b.rows, a.columns, config]
    const stored = { isLinear: false, isInputMajor: false, shape: [experts, d, k] }
    const factors = { d, k, rank, scale, ...stored, a, b, isTied: config.ensureWeightTying }
    this.layers.push({ name, tensor, ...factors, experts, scales: undefined })
  }
}

/** PEFT gives both uses of tied embeddings the rows of one, but where the output embedding has rows of its own. */
function areRowsShared(modules: Iterable<string>): boolean {
  return ![...modules].some(isHeadModule)
}

/**
 * A checkpoint does not say whether a convolution is dilated. One that is gets what PEFT's merge gives it, W + s·B·A, although A was
 * not dilated in training.
 *
 * @throws UnsupportedError where there are groups
 */
function convolutionWeight([a, b]: LayerParts['shapes'], name: string): number[] {
  const { d, channels, kernel, groups } = convolutionShape(a, b, name)
  if (groups > 1) throw new UnsupportedError({ where: name, what: groupsRefusal(groups) })
  return [d, channels, ...kernel]
}

function tensorFactor(source: ByteSource, index: number, { name, dtype, shape, offset }: TensorInfo): Factor {
  if (!isWeightDtype(dtype)) {
    throw new UnsupportedError({
      where: `${source.name}: ${name}`,
      what: 'a factor of this type cannot be merged',
      expected: 'F64, F32, F16 or BF16',
      got: dtype,
    })
  }
  return {
    name: `${source.name}: ${name}`,
    source: index,
    offset,
    dtype,
    ...(shape.length === 1 ? { rows: 1, columns: shape[0] } : matrixSize(shape)),
  }
}

function matrixSize(shape: readonly number[]): { rows: number; columns: number } {
  return { rows: shape[0], columns: elementCount(shape.slice(1)) }
}

function matrixFactor(name: string, { data, shape }: Tensor<FloatArray>, sources: ByteSource[]): Factor {
  const dtype = data instanceof Float64Array ? 'F64' : 'F32'
  const bytes = encodeWeights(data, dtype)
  return {
    name,
    source: sources.push(new MemorySource(bytes, name)) - 1,
    offset: 0,
    dtype,
    ...matrixSize(shape),
  }
}
