// How much tests with very many inputs try: a part of them in `npm test`, all in `npm run test:slow`, which runs their
// files again.

export const THOROUGH = process.env.THOROUGH !== undefined

/** A fifth of a number of random inputs, unless all are to be tried. */
export const runs = (count: number): number => (THOROUGH ? count : Math.ceil(count / 5))

/** The step of a loop over the places of a file. */
export const STEP = THOROUGH ? 1 : 5
