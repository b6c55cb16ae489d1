// Describes an adapter in numbers, for `lowrank inspect` and for anyone who wants to check it before merging.

import { closing, type Directory } from '../../core/base/bytes.js'
import { decodeWeights, type FloatDtype, requireWeightDtype, type TensorDtype } from '../../core/base/dtype.js'
import { type ErrorCode, LowrankError } from '../../core/base/errors.js'
import { elementCount, type FloatArray, isAllFinite, type Tensor } from '../../core/base/tensor.js'
import { norm } from '../../core/linalg/product.js'
import type { LoraAdapter } from '../adapter.js'
import { type LoraConfig, scalingOf } from '../config.js'
import { changesBase } from '../init/inits.js'
import { notFinite, trainableParams } from '../part.js'
import { endsOf } from '../patterns/patterns.js'
import { factorPairs, meanSpectrum, normOfSpectrum, type Spectrum, spectrumOf } from '../spectrum.js'
import type { AdapterTensor } from './keys.js'
import { openAdapter, tensorPlace, valueProblems } from './open.js'
import type { OpenPart } from './tensors.js'

/**
 * A layer in numbers. Norms are NaN, which JSON writes as null, if a factor contains a value that is not finite.
 * Singular values and ranks are means over the experts of a parameter and the groups of a convolution.
 */
export interface LayerReport extends Spectrum {
  name: string
  kind: 'linear' | 'embedding' | 'convolution' | 'parameter'
  /** Rows of B: the number of output features, or the features of an embedding. */
  d: number
  /**
   * Columns of A: the number of input features. For an embedding, its vocabulary. For a convolution, the input channels
   * times the kernel's elements.
   */
  k: number
  /** r. For a parameter, the rank of each expert. */
  rank: number
  /** The number of matrices (d, k) in a parameter. Absent for other kinds. */
  experts?: number
  /** α of this layer, with rankPattern and alphaPattern applied. */
  alpha: number
  /** s, by which B·A is multiplied. */
  scaling: number
  /** The layer's float type in the file. */
  dtype: FloatDtype
  /** The Frobenius norm ‖A‖. */
  normA: number
  /** The Frobenius norm ‖B‖. */
  normB: number
  /** The Frobenius norm ‖s·B·A‖. */
  normDelta: number
  /** True if the layer has a DoRA magnitude. */
  hasMagnitude: boolean
  /** Whether B has a bias. */
  hasBias: boolean
}

/** A tensor that replaces a tensor of the base, or some of its rows. */
export interface ReplacementReport {
  /** The tensor's name in the base. */
  name: string
  dtype: TensorDtype
  /** The shape of the tensor in the adapter. For rows of an embedding, (rows, D). */
  shape: readonly number[]
  /** The number of rows that are replaced. Undefined if the whole tensor is replaced. */
  rows?: number
}

/** Why loading or merging would refuse the adapter. */
export interface ProblemReport {
  /** The kind of error. */
  code: ErrorCode
  /** The error's whole message. */
  message: string
}

/** A report on an adapter. */
export interface AdapterReport {
  config: LoraConfig
  /** See {@link LoraAdapter.totalTrainableParams}. */
  trainableParams: number
  /** Layers of every kind. */
  layers: LayerReport[]
  /** The replaced tensors: whole tensors first, then rows. */
  replacements: ReplacementReport[]
  /** All errors that loading or merging the adapter would throw. Empty for a sound adapter. */
  problems: ProblemReport[]
  /** Warnings as text: the adapter is valid, but something is unusual. */
  warnings: string[]
}

/** α is usually between r/2 and 4·r. A scaling this far from 1 is more often a mistake than intended. */
const UNUSUAL_SCALING = 16

/** A singular value below this share of the largest comes from rounding f32 factors, and is really zero. */
const ROUNDING = 2 ** -20

/** Inspects an adapter, and reports everything that loading would refuse. Only a layer at a time is in memory. */
export async function inspectAdapter(source: LoraAdapter | Directory): Promise<AdapterReport> {
  return closing(await openAdapter(source, { isTolerant: true }), async (adapter) => {
    const { config, notes } = adapter
    const problems: LowrankError[] = [...adapter.problems]
    const layers: LayerReport[] = []
    const replacements: ReplacementReport[] = []
    for (const part of adapter.parts()) {
      if (part.kind === 'replacement' || part.kind === 'token-rows') {
        problems.push(...(await valueProblems(part.tensors.weight)))
        replacements.push(replacementReport(part))
        continue
      }
      const report = await layerReport(part, adapter.dtypeOf(part), problems)
      if (report !== undefined) layers.push(report)
    }
    const report = {
      config,
      trainableParams: adapter.parts().reduce((sum, part) => sum + trainableParams(part), 0),
      layers,
      replacements,
    }
    return {
      ...report,
      problems: problems.map(({ code, message }) => ({ code, message })),
      warnings: [...notes.map((note) => `The folder has ${note}`), ...warningsOf(report, adapter.parts())],
    }
  })
}

type OpenLayer = Exclude<OpenPart, { kind: 'replacement' | 'token-rows' }>

async function layerReport(
  part: OpenLayer,
  dtype: FloatDtype,
  problems: LowrankError[],
): Promise<LayerReport | undefined> {
  const { name, kind, config, tensors } = part
  const { weightA, weightB, ...vectors } = tensors
  try {
    const [a, b] = [await readValues(weightA), await readValues(weightB)]
    if (!isAllFinite(a.data)) problems.push(notFinite(tensorPlace(weightA)))
    if (!isAllFinite(b.data)) problems.push(notFinite(tensorPlace(weightB)))
    for (const info of Object.values(vectors)) if (info) problems.push(...(await valueProblems(info)))
    const { rank, alpha } = config
    const scaling = scalingOf(config)
    const experts = kind === 'parameter' ? part.experts : undefined
    const spectra = factorPairs(a, b, experts).map((pair) => spectrumOf(pair, scaling))
    return {
      name,
      kind,
      d: b.shape[0],
      k: elementCount(a.shape.slice(1)),
      rank,
      ...(experts !== undefined && { experts }),
      alpha,
      scaling,
      dtype,
      normA: norm(a),
      normB: norm(b),
      normDelta: norm({ data: Float64Array.from(spectra, normOfSpectrum) }),
      ...meanSpectrum(spectra),
      hasMagnitude: tensors.magnitude !== undefined,
      hasBias: tensors.biasB !== undefined,
    }
  } catch (error) {
    if (!(error instanceof LowrankError)) throw error
    problems.push(error)
    return undefined
  }
}

async function readValues(info: AdapterTensor): Promise<Tensor<FloatArray>> {
  const { source, shape, offset, byteLength } = info
  const dtype = requireWeightDtype(info.dtype, tensorPlace(info), 'its dtype cannot be read as f32')
  return { data: decodeWeights(await source.read(offset, byteLength), dtype), shape }
}

function replacementReport(part: Extract<OpenPart, { kind: 'replacement' | 'token-rows' }>): ReplacementReport {
  const { shape, dtype } = part.tensors.weight
  if (part.kind === 'replacement') return { name: part.name, dtype, shape }
  return { name: `${part.module}.weight`, dtype, shape, rows: part.indices.length }
}

function warningsOf(
  { layers, config }: Pick<AdapterReport, 'layers' | 'config'>,
  parts: readonly OpenPart[],
): string[] {
  const warnings: string[] = []
  const warn = (affected: readonly LayerReport[], what: string) => {
    if (affected.length > 0) warnings.push(`${count(affected, layers)}: ${what}`)
  }
  if (changesBase(config.init)) {
    warnings.push(
      `It started as ${config.init}, which took a part of the base into B·A: B·A is not its change. \`lowrank to-plain\` makes plain LoRA of it`,
    )
  }
  // With a magnitude or a bias, a layer changes something even if B·A is zero.
  const plain = layers.filter(({ hasMagnitude, hasBias }) => !hasMagnitude && !hasBias)
  warn(
    plain.filter(({ normB }) => normB === 0),
    'B is all zero, as before training, so the layer changes nothing',
  )
  warn(
    plain.filter(({ normA, normB }) => normA === 0 && normB !== 0),
    'A is all zero, so the layer changes nothing',
  )
  warn(
    layers.filter(
      ({ normDelta, singularValues: [first, ...rest] }) =>
        normDelta > 0 && rest.some((value) => value <= ROUNDING * first),
    ),
    'the rank of B·A is lower than the rank of the adapter, so a smaller rank would be enough',
  )
  warn(
    layers.filter(({ rank, d, k }) => rank > Math.min(d, k)),
    'the rank is above min(d, k): B·A cannot have such a high rank',
  )
  warn(
    layers.filter(({ scaling }) => scaling > UNUSUAL_SCALING || scaling < 1 / UNUSUAL_SCALING),
    `the scaling is unusual (${[...new Set(layers.map(({ scaling }) => scaling))].slice(0, 3).join(', ')})`,
  )
  const idle = new Set(typeof config.targetModules === 'string' ? [] : config.targetModules)
  for (const { kind, name } of parts) if (kind !== 'parameter') for (const end of endsOf(name)) idle.delete(end)
  if (idle.size > 0 && layers.length > 0) {
    const others = idle.size > 3 ? ` and ${idle.size - 3} more` : ''
    warnings.push(`targetModules has ${[...idle].slice(0, 3).join(', ')}${others}, for which there is no layer`)
  }
  return warnings
}

function count(affected: readonly LayerReport[], all: readonly LayerReport[]): string {
  if (affected.length === all.length) return all.length === 1 ? affected[0].name : `All ${all.length} layers`
  const names = affected.slice(0, 3).map(({ name }) => name)
  return names.join(', ') + (affected.length > 3 ? ` and ${affected.length - 3} more` : '')
}
