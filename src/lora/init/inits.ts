// The ways in which a new layer's factors can start. All except `normal` are PEFT's.

/**
 * Inits that need only the layer's shape:
 * - `normal`: A ~ N(0, variance 1/r), B = 0.
 * - `kaiming-uniform`: A ~ U(±1/√k), B = 0; PEFT's default.
 * - `gaussian`: A ~ N(0, deviation 1/r), B = 0.
 * - `random`: A ~ U(±1/√k), B ~ U(±1/√r); PEFT's `false`. The effective weight does not start as W.
 * - `orthogonal`: the rank must be even. A and B use different halves of an orthogonal basis, so B·A = 0. Values are
 *   about 1/10.
 *
 * Inits that need the base weight:
 * - `pissa` (Meng et al. 2024, arXiv 2404.02948): the r largest singular values and vectors are removed from W and
 *   stored in B·A. If the rank is higher than min(d, k), lowrank uses min(d, k). The scaling s is still computed from
 *   the rank in the config.
 * - `olora` (Büyükakyüz 2024, arXiv 2406.01775): the first r columns of Q and rows of R of W = Q·R move into B·A. The
 *   rank is limited as with `pissa`.
 *
 * Inits that lowrank does not compute, but whose adapters, made by PEFT, it can read: `pissa-niter-N` (PiSSA by N
 * subspace iterations from a random start), `mica` (arXiv 2604.01694), `eva` (Paischer et al. 2024, arXiv 2410.07170),
 * `lora-ga` (Wang et al. 2024, arXiv 2407.05000) and `corda` (Yang et al. 2024, arXiv 2406.05223).
 */
export type Init =
  | 'normal'
  | 'kaiming-uniform'
  | 'gaussian'
  | 'random'
  | 'orthogonal'
  | 'pissa'
  | `pissa-niter-${number}`
  | 'olora'
  | 'mica'
  | 'eva'
  | 'lora-ga'
  | 'corda'

export const DRAWN_INITS = ['normal', 'kaiming-uniform', 'gaussian', 'random', 'orthogonal'] as const satisfies Init[]

/** The inits that a new layer can have. */
export const STARTS = [...DRAWN_INITS, 'pissa', 'olora'] as const satisfies Init[]

const PEFT_INITS: readonly unknown[] = ['mica', 'eva', 'lora-ga', 'corda'] satisfies Init[]

export function isInit(value: unknown): value is Init {
  return (STARTS as readonly unknown[]).includes(value) || PEFT_INITS.includes(value) || isPissaNiter(value)
}

export function isPissaNiter(value: unknown): value is `pissa-niter-${number}` {
  return typeof value === 'string' && /^pissa-niter-\d{1,4}$/.test(value)
}

/** Says whether an init changes the base to W − s·B₀·A₀: pissa, olora, lora-ga, corda. */
export function changesBase(init: Init): boolean {
  return takesFromBase(init) || init === 'lora-ga' || init === 'corda'
}

/** Says whether PEFT computes B₀·A₀ from W: pissa, pissa-niter-N, olora. */
export function takesFromBase(init: Init): boolean {
  return isComputedFromBase(init) || isPissaNiter(init)
}

/**
 * True if B₀·A₀ can be computed again from W alone. False for pissa-niter-N, which starts from random values that no
 * file contains.
 */
export function isComputedFromBase(init: Init): boolean {
  return init === 'pissa' || init === 'olora'
}
