// Compares two adapters without full matrices.

import { closing, type Directory } from '../../core/base/bytes.js'
import { MismatchError } from '../../core/base/errors.js'
import { Steps, type ToolRun } from '../../core/base/progress.js'
import { F64, formatShape, type Matrix } from '../../core/base/tensor.js'
import { inPrecisionOf, product } from '../../core/linalg/product.js'
import type { LoraAdapter } from '../../lora/adapter.js'
import type { FactorPair } from '../../lora/delta.js'
import type { PartView } from '../../lora/part.js'
import { type OpenAdapter, openForUse } from '../../lora/peft/open.js'
import { type Change, changeOf, differencePair, isFactorPart, normOf } from './factor-parts.js'

/** A layer of two adapters. */
export interface AdapterLayerDiff extends AdapterDifference {
  /** The layer's name, such as `model.layers.0.self_attn.q_proj`. */
  name: string
  kind: PartView['kind']
  /** Shape of the weight. */
  shape: number[]
}

/** Result of {@link diff}. */
export interface DiffReport {
  layers: AdapterLayerDiff[]
  /** Layers that only the first adapter has. */
  onlyA: string[]
  onlyB: string[]
  /** √Σ‖ΔB − ΔA‖² / √Σ‖ΔA‖² over the layers of both. */
  relativeChange: number
  /** Names of the layers that differ most, largest ‖ΔB − ΔA‖ first. */
  topMovers: string[]
}

const TOP = 10

export async function diffAdapters(
  a: LoraAdapter | Directory,
  b: LoraAdapter | Directory,
  run: ToolRun,
): Promise<DiffReport> {
  const open = (adapter: LoraAdapter | Directory) => openForUse(adapter, 'a comparison')
  const compare = async (...opened: readonly OpenAdapter[]): Promise<DiffReport> => {
    const [partsA, partsB] = opened.map((adapter) => new Map(adapter.parts().map((part) => [part.name, part])))
    const shared = [...partsA.keys()].filter((name) => partsB.has(name))
    const steps = new Steps(shared.length, run)
    const layers: AdapterLayerDiff[] = []
    for (const name of shared) {
      layers.push(await diffPart(name, opened))
      await steps.next(name)
    }
    return { layers, ...summary(layers, partsA, partsB) }
  }
  return closing(await open(a), async (first) => closing(await open(b), (second) => compare(first, second)))
}

async function diffPart(name: string, [a, b]: readonly OpenAdapter[]): Promise<AdapterLayerDiff> {
  const [partA, partB] = [await a.read(name), await b.read(name)]
  const of = (part: typeof partA) => `${part.kind} ${formatShape(part.shape)}`
  if (of(partA) !== of(partB)) {
    throw new MismatchError({
      where: name,
      what: 'not the same layer: the adapters belong to different bases',
      expected: of(partA),
      got: of(partB),
    })
  }
  const shape = [...partA.shape]
  if (isFactorPart(partA) && isFactorPart(partB)) {
    return { name, kind: partA.kind, shape, ...compareChanges(changeOf(partA), changeOf(partB)) }
  }
  const values = [partA, partB].map((part) => (isFactorPart(part) ? new Float32Array() : part.weight.data))
  return { name, kind: partA.kind, shape, ...compareValues(values[0], values[1]) }
}

function compareValues(a: ArrayLike<number>, b: ArrayLike<number>): AdapterDifference {
  let [normA, normB, off, shared] = [0, 0, 0, 0]
  for (let i = 0; i < a.length; i++) {
    normA += a[i] ** 2
    normB += b[i] ** 2
    off += (b[i] - a[i]) ** 2
    shared += a[i] * b[i]
  }
  return differenceOf(Math.sqrt(normA), Math.sqrt(normB), Math.sqrt(off), shared)
}

/** @param shared the inner product ⟨ΔA, ΔB⟩ */
function differenceOf(normA: number, normB: number, normDifference: number, shared: number): AdapterDifference {
  // Rounding can take the cosine of equal directions a little past 1.
  const cosine = normA * normB === 0 ? null : Math.max(-1, Math.min(1, shared / (normA * normB)))
  return { normA, normB, normDifference, relativeChange: relative(normDifference, normA), cosine }
}

function summary(
  all: readonly { readonly name: string; readonly normA: number; readonly normDifference: number }[],
  a: ReadonlyMap<string, unknown>,
  b: ReadonlyMap<string, unknown>,
): Omit<DiffReport, 'layers'> {
  const total = (of: (layer: (typeof all)[number]) => number) => Math.hypot(...all.map(of).filter(Number.isFinite))
  const moved = all
    .filter(({ normDifference }) => normDifference > 0)
    .sort((x, y) => y.normDifference - x.normDifference)
  return {
    onlyA: [...a.keys()].filter((name) => !b.has(name)),
    onlyB: [...b.keys()].filter((name) => !a.has(name)),
    relativeChange: relative(
      total(({ normDifference }) => normDifference),
      total(({ normA }) => normA),
    ),
    topMovers: moved.slice(0, TOP).map(({ name }) => name),
  }
}

function relative(difference: number, norm: number): number {
  return difference === 0 ? 0 : difference / norm
}

/** Two changes of one weight, ΔA and ΔB, in numbers. */
export interface AdapterDifference {
  /** ‖ΔA‖, the Frobenius norm of the change that the first adapter makes. */
  normA: number
  /** ‖ΔB‖, the Frobenius norm of the change that the second adapter makes. */
  normB: number
  /** ‖ΔB − ΔA‖ */
  normDifference: number
  /** ‖ΔB − ΔA‖/‖ΔA‖; 0 if the changes are equal. */
  relativeChange: number
  /** ⟨ΔA, ΔB⟩/(‖ΔA‖·‖ΔB‖): 1 for the same direction, −1 for opposite directions, null if a change is 0. */
  cosine: number | null
}

/** Several matrices (groups, experts) give norms over all of them. */
function compareChanges(a: Change, b: Change): AdapterDifference {
  const pairs = a.pairs.map((pair, at) => [pair, b.pairs[at]] as const)
  const [normA, normB] = [normOf(a.pairs), normOf(b.pairs)]
  const isEqual = pairs.every(
    ([pairA, pairB]) => isSame(pairA.weightA, pairB.weightA) && isSame(pairA.weightB, pairB.weightB),
  )
  const normDifference = isEqual ? 0 : normOf(pairs.map((pair) => differencePair(...pair)))
  const shared = pairs.reduce((sum, [pairA, pairB]) => sum + innerProduct(pairA, pairB), 0)
  return differenceOf(normA, normB, normDifference, shared)
}

/** ⟨B₁A₁, B₂A₂⟩ = tr((B₁ᵀB₂)·(A₂A₁ᵀ)) */
function innerProduct(pairA: FactorPair, pairB: FactorPair): number {
  const [b1, a1, b2, a2] = [pairA.weightB, pairA.weightA, pairB.weightB, pairB.weightA].map((matrix) =>
    inPrecisionOf(F64, matrix),
  )
  const left = product(b1, b2, { transposeA: true }) // (r1, d) @ (d, r2)
  const right = product(a1, a2, { transposeB: true }) // (r1, k) @ (k, r2)
  let sum = 0
  for (let i = 0; i < left.data.length; i++) sum += left.data[i] * right.data[i]
  return sum
}

function isSame(a: Matrix, b: Matrix): boolean {
  return a.data.length === b.data.length && a.data.every((value, i) => value === b.data[i])
}
