// Right calls of the tools, for calls.ts: combine, resize, and other functions that make adapters from files.

import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import * as lowrank from '../../src/api/node.js'
import type { Call } from './calls.js'

const PISSA = join(fileURLToPath(new URL('../..', import.meta.url)), 'tests/golden/inits/pissa-embedding-alone')

const BASE = join(fileURLToPath(new URL('../..', import.meta.url)), 'models/union-3m')

const adapter = () => {
  const made = new lowrank.LoraAdapter({ rank: 1, targetModules: ['q'] })
  made.addFactors('q', [[1, 0]], [[1], [2]])
  return made
}

export const TOOL_FUNCTIONS: Record<string, Call> = {
  combine: {
    call: lowrank.combine,
    args: () => [
      {
        adapters: [adapter(), { adapter: adapter(), weight: 0.5 }],
        combinationType: 'exact',
        rank: 1,
        signal: new AbortController().signal,
      },
    ],
    options: 0,
    misspelled: { adapter: /adapters/, combination_type: /combinationType/, svdRank: /rank/ },
  },
  convertAdapter: {
    call: lowrank.convertAdapter,
    args: () => [
      adapter(),
      { to: 'gguf', out: new lowrank.MemoryDirectory(), base: BASE, outDtype: 'fp32', on: { progress() {} } },
    ],
    options: 1,
    misspelled: { format: /to/, outdtype: /outDtype/, bas: /base/ },
  },
  diff: {
    call: lowrank.diff,
    args: () => [adapter(), adapter(), { on: { progress() {} } }],
    options: 2,
    misspelled: { progress: /on\.progress/, onProgress: /on: \{ progress/ },
  },
  resize: {
    call: lowrank.resize,
    args: () => [PISSA, { rank: 1, on: { progress() {} } }],
    options: 1,
    misspelled: { ranks: /rank/, enrgy: /energy/ },
  },
}
