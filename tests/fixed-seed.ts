// Random inputs of tests are the same in each run, so that a change is judged by the same inputs as the one before it.
// `SEED=2 npm test` takes others.

import fc from 'fast-check'

fc.configureGlobal({ ...fc.readConfigureGlobal(), seed: Number(process.env.SEED ?? 1) })
