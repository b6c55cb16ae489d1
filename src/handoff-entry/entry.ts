// lowrank/handoff: hands a run off to another program.

/** @module lowrank/handoff */

export type { HandoffReport } from '../handoff/handoff.js'
export { type HandoffOptions, handoff } from '../index/export/handoff.js'
export { type PushOptions, type PushReport, push } from '../index/export/push.js'
