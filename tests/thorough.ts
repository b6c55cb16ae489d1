// How much tests with very many inputs try: a part of them in `npm test`, all in `npm run test:slow`, which runs their
// files again.

export const THOROUGH = process.env.THOROUGH !== undefined

/** A fifth of a number of random inputs, unless all are to be tried. */
export const runs = (count: number): number => (THOROUGH ? count : Math.ceil(count / 5))

/** The step of a loop over the places of a file. */
export const STEP = THOROUGH ? 1 : 5

/** Cases of each kind; the others, which run the same code as these, come after them where all are to be tried. */
export const cases = <const T>(always: readonly T[], others: readonly T[]): T[] =>
  THOROUGH ? [...always, ...others] : [...always]

/** The first of each few cases that run the same code, unless all are to be tried. */
export const some = <T>(all: readonly T[], few = 3): T[] => all.filter((_, i) => THOROUGH || i % few === 0)
