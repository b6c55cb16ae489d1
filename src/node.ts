// The public API in Node: all of `lowrank`, with paths where that takes folders and files.

export * from './index.js'
export { NodeDirectory, openFile } from './io/node/files.js'
export { type ConvertByPathOptions, type ConvertReport, convert } from './node/convert.js'
export {
  type CheckpointContents,
  type InspectOptions,
  type InspectReport,
  inspect,
  type OnnxReport,
} from './node/inspect.js'
export {
  type MergeToPath,
  merge,
  type PathAdapter,
  planMerge,
  type UnmergeToPath,
  unmerge,
} from './node/merge.js'
export { type LoadModelOptions, loadAdapter, loadModel, saveAdapter } from './node/model.js'
export { nodeRuntime } from './node/runtime.js'
export { type TrainOptions, train } from './node/train.js'
export { defaultTargetModules } from './peft/default-targets.js'
