// lowrank/openai: takes fine-tunes home from OpenAI and other providers.

/** @module lowrank/openai */

import '../../../api/node.js'

export { azure } from '../azure.js'
export type { Comparison } from '../compare.js'
export type { Manifest, Missing, Moved, Seen } from '../manifest.js'
export { openai } from '../openai.js'
export { checkPrices, PRICES, type Prices } from '../prices.js'
export type { Job, Provider, Route } from '../provider.js'
export { together } from '../together.js'
export { type CheckOptions, type CheckReport, checkTraffic } from './check.js'
export { type ExportOptions, exportAll } from './export.js'
export { type MovedJob, type MoveOptions, moveJobs } from './move.js'
export { type RecordOptions, type RecordReport, recordAnswers } from './record.js'
export type { Recorded } from './recorded.js'
export { openServed, type Served, type ServedOptions } from './served.js'
