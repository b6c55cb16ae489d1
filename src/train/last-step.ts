// The state after the last step, in memory that the engine's worker and its owner share: a run in ONNX Runtime cannot be interrupted, and the
// worker does not answer while it goes on.

import type { AdamWState } from './optimizer.js'

/** All that training changes: where it starts, or how far it came. */
export interface EngineState extends AdamWState {
  parameters: Float32Array[]
  /** The parameters of the best evaluation; undefined where none were kept. */
  best?: Float32Array[] | undefined
}

/** Arrays over shared memory, one for each trained tensor. */
export interface LastStep {
  readonly parameters: readonly Float32Array[]
  readonly firstMoments: readonly Float32Array[]
  readonly secondMoments: readonly Float32Array[]
  readonly best: readonly Float32Array[]
  /** By {@link UPDATES}, {@link CHANGING} and {@link HAS_BEST}. */
  readonly counters: Int32Array
}

/** How many updates the state comes after. */
const UPDATES = 0
/** 1 while it is being written. */
const CHANGING = 1
/** 1 once there are best parameters. */
const HAS_BEST = 2

/** How long the owner waits for a state that is being written. */
const WAIT_MS = 20
const WAITS = 20

/**
 * Memory for the state of a run with these parameters.
 *
 * @returns undefined where there is no shared memory, as in pages that are not isolated from other origins
 */
export function makeLastStep(parameters: readonly Float32Array[], keepsBest: boolean): LastStep | undefined {
  if (typeof SharedArrayBuffer === 'undefined') return undefined
  const arrays = () => parameters.map(({ byteLength }) => new Float32Array(new SharedArrayBuffer(byteLength)))
  return {
    parameters: arrays(),
    firstMoments: arrays(),
    secondMoments: arrays(),
    best: keepsBest ? arrays() : [],
    counters: new Int32Array(new SharedArrayBuffer(12)),
  }
}

/** Copies a state in, and returns the moments that the optimizer is to change in place. */
export function startLastStep(last: LastStep, { parameters, best, ...state }: EngineState): AdamWState {
  const { firstMoments, secondMoments, counters } = last
  copy(parameters, last.parameters)
  copy(state.firstMoments, firstMoments)
  copy(state.secondMoments, secondMoments)
  if (best !== undefined) keepBestOf(last, best)
  Atomics.store(counters, UPDATES, state.updates)
  return { firstMoments: [...firstMoments], secondMoments: [...secondMoments], updates: state.updates }
}

/** Runs an update of parameters and moments, and then takes over the parameters. ONNX Runtime refuses shared memory itself. */
export function updateLastStep(last: LastStep, parameters: readonly Float32Array[], update: () => number): void {
  Atomics.store(last.counters, CHANGING, 1)
  const updates = update()
  copy(parameters, last.parameters)
  Atomics.store(last.counters, UPDATES, updates)
  Atomics.store(last.counters, CHANGING, 0)
}

export function keepBestOf(last: LastStep, best: readonly Float32Array[]): void {
  copy(best, last.best)
  Atomics.store(last.counters, HAS_BEST, 1)
}

/** A copy of the state after so many updates; undefined where the memory has not got that one. */
export async function readLastStep(last: LastStep, updates: number): Promise<EngineState | undefined> {
  for (let i = 0; i < WAITS && Atomics.load(last.counters, CHANGING) === 1; i++) {
    await new Promise((resolve) => setTimeout(resolve, WAIT_MS))
  }
  if (Atomics.load(last.counters, CHANGING) === 1 || Atomics.load(last.counters, UPDATES) !== updates) return undefined
  const copies = (arrays: readonly Float32Array[]) => arrays.map((array) => Float32Array.from(array))
  return {
    parameters: copies(last.parameters),
    firstMoments: copies(last.firstMoments),
    secondMoments: copies(last.secondMoments),
    updates,
    ...(Atomics.load(last.counters, HAS_BEST) === 1 && { best: copies(last.best) }),
  }
}

function copy(from: readonly Float32Array[], to: readonly Float32Array[]): void {
  to.forEach((array, i) => void array.set(from[i]))
}
