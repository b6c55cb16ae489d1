// Limits tests with very many inputs: `npm test` tries a part of them, and `npm run test:slow` runs the files again
// with all inputs.

export const THOROUGH = process.env.THOROUGH !== undefined

/** Returns a fifth of a number of random inputs, or all in a thorough run. */
export const runs = (count: number): number => (THOROUGH ? count : Math.ceil(count / 5))

/** The step of loops over all places in a file. */
export const STEP = THOROUGH ? 1 : 5

/** Returns `always`; in a thorough run also `others`, which run the same code. */
export const cases = <const T>(always: readonly T[], others: readonly T[]): T[] =>
  THOROUGH ? [...always, ...others] : [...always]

/** Returns the first of each `few` cases that run the same code, or all in a thorough run. */
export const some = <T>(all: readonly T[], few = 3): T[] => all.filter((_, i) => THOROUGH || i % few === 0)
