// lowrank/handoff: hands a run off to another program.

/** @module lowrank/handoff */

export type { HandoffReport } from '../train/handoff/handoff.js'
export { type HandoffOptions, handoff } from './export/handoff.js'
export { type PushOptions, type PushReport, push } from './export/push.js'
