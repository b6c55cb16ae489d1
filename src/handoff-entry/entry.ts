// lowrank/handoff: a run goes on elsewhere.

export type { HandoffReport } from '../handoff/handoff.js'
export { type HandoffOptions, handoff } from '../index/export/handoff.js'
export { type AddLoraInputsOptions, addLoraInputs, type LoraInputsReport } from '../index/export/lora-inputs.js'
export { type PushOptions, type PushReport, push } from '../index/export/push.js'
