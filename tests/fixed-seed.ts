// Gives tests the same random inputs in each run, so that a failure comes from a change in the code.
// `SEED=2 npm test` takes other inputs.

import fc from 'fast-check'

fc.configureGlobal({ ...fc.readConfigureGlobal(), seed: Number(process.env.SEED ?? 1) })
