// The public API in Node: all of `lowrank`, with paths where that takes folders and files.

export * from './index.js'
export { NodeDirectory, openFile } from './io/node/files.js'
export type { FileAdapter } from './merge/node/merge.js'
export {
  type UnmergeFilesOptions,
  type UnmergeFilesReport,
  unmergeCheckpointFiles,
} from './merge/node/unmerge.js'
export { type ConvertByPathOptions, type ConvertReport, convert } from './node/convert.js'
export {
  type CheckpointReport,
  type InspectOptions,
  type InspectReport,
  inspect,
  type OnnxReport,
} from './node/inspect.js'
export { type MergeByPathOptions, type MergePlanReport, merge, planMerge } from './node/merge.js'
export { type LoadModelOptions, loadAdapter, loadModel, saveAdapter } from './node/model.js'
export { nodeRuntime } from './node/runtime.js'
export { type TrainOptions, train } from './node/train.js'
export { defaultTargetModules } from './peft/default-targets.js'
