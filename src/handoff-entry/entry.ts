// lowrank/handoff: a run goes on elsewhere.

export type { HandoffReport } from '../handoff/handoff.js'
export { type HandoffOptions, handoff } from '../index/away/handoff.js'
export { type AddLoraInputsOptions, addLoraInputs, type LoraInputsReport } from '../index/away/lora-inputs.js'
export { type PushOptions, type PushReport, push } from '../index/away/push.js'
