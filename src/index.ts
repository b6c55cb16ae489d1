/// <reference lib="esnext.disposable" preserve="true" />
// The public API for both runtimes: everything here runs in Node and in browsers. `lowrank/node` adds paths.

export {
  type ByteSink,
  type ByteSource,
  type Directory,
  MemoryDirectory,
  MemorySource,
} from './base/bytes.js'
export type { FloatDtype } from './base/dtype.js'
export {
  ConfigError,
  DataError,
  type ErrorCode,
  type ErrorDetails,
  FileError,
  FormatError,
  LowrankError,
  MismatchError,
  NumericError,
  nearMisses,
  RuntimeError,
  ShapeError,
  StateError,
  UnsupportedError,
} from './base/errors.js'
export type { FloatArray, Matrix, MatrixLike, Tensor } from './base/tensor.js'
export type { OnnxModel } from './formats/onnx/model.js'
export type { WeightRange } from './formats/onnx/tensors.js'
export type { CausalModel, LoadModelOptions } from './graph/model-folder.js'
export {
  AdapterSession,
  compareCheckpoints,
  convertToPlain,
  cordaInitialize,
  evaInitialize,
  generate,
  loadAdapter,
  loadModel,
  loadOnnx,
  loftqInitialize,
  loraGaInitialize,
  mergeCheckpoint,
  mergeOnnx,
  saveAdapter,
  unmergeCheckpoint,
} from './index/deferred.js'
export { webRuntime } from './index/web-runtime.js'
export type { AdapterSessionOptions, RunOptions, SessionBase } from './infer/adapter-session.js'
export type { GenerateOptions, GenerateResult } from './infer/generate.js'
export { GENERATE_DEFAULTS, type SamplingOptions } from './infer/sampling.js'
export { FilesDirectory, HandleDirectory, type OpenStream, StreamDirectory } from './io/web/directories.js'
export { BlobSource, openUrl, type UrlOptions } from './io/web/files.js'
export { configureKernels, disposeKernels, type KernelOptions } from './kernels/index.js'
export type { SimdBuild } from './kernels/module.js'
export { type AdapterSummary, type LayerSummary, LoraAdapter } from './lora/adapter.js'
export {
  type LoraConfig,
  type LoraConfigInput,
  resolveConfig,
  TRAIN_DEFAULTS,
} from './lora/config.js'
export type { LayerVectors } from './lora/factors.js'
export type { CordaOptions, EvaOptions, LoraGaOptions } from './lora/init/data-inits.js'
export { DRAWN_INITS, INITS, type Init } from './lora/init/inits.js'
export type { BaseWeights } from './lora/init/to-plain.js'
export { type ConvolutionGradients, ConvolutionLora } from './lora/kinds/convolution.js'
export { type EmbeddingGradients, EmbeddingLora } from './lora/kinds/embedding.js'
export { type BaseLayout, ExpertLora, type ParameterValues } from './lora/kinds/experts.js'
export type { ConvolutionGeometry } from './lora/kinds/windows.js'
export { type LayerGradients, LoraLayer } from './lora/layer.js'
export type { AdapterPart, PartKind } from './lora/plain.js'
export type { Replacement, StoredTensor, TokenRows } from './lora/replacements.js'
export { baseModuleName, type LayerRanges } from './lora/replication.js'
export type { Spectrum } from './lora/spectrum.js'
export type { MergeCheckpointOptions } from './merge/chunks/merge-checkpoint.js'
export type { Differences, UnmergeOptions, UnmergeReport, ValueDifferences } from './merge/chunks/unmerge.js'
export type { ConvertOptions } from './merge/convert.js'
export type { FitReport, PartFit } from './merge/fit.js'
export type { MergeBase } from './merge/format.js'
export type { MergeOnnxOptions } from './merge/onnx/merge-onnx.js'
export type { TiedPolicy } from './merge/plan/tied.js'
export type {
  MergedFile,
  MergeFormat,
  MergePlanReport,
  MergeProgress,
  MergeReport,
  MergeSummary,
} from './merge/report.js'
export type { MergeSettings, PathSettings, RunSettings } from './merge/settings.js'
export type { LayerChange } from './merge/weight.js'
export type { AdapterInput, MergeAdapter, WeightedAdapter } from './merge/weighted.js'
export type { LoadOptions, SaveOptions } from './peft/adapter-folder.js'
export {
  type AdapterReport,
  inspectAdapter,
  type LayerReport,
  type ProblemReport,
  type ReplacementReport,
} from './peft/inspect.js'
export type { RuntimeHost } from './runtime/host.js'
export type { OrtModule } from './runtime/onnxruntime.js'
export type { Feeds, RuntimeTensor, SessionOptions, TensorData, TensorType } from './runtime/runtime.js'
export type { TextRecord } from './text/records.js'
export type { TextStream, Tokenizer } from './text/tokenizer.js'
export type { TrainerOptions, TrainingData, TrainResult } from './train/options.js'
export type { EvaluationEvent, StepEvent, TrainEvents, TrainReport, TrainStage } from './train/report.js'
export type { StepMetrics } from './train/run-folder.js'
export { SCHEDULES, type Schedule } from './train/schedule.js'
export { SETTINGS_DEFAULTS, type TrainSettings } from './train/settings.js'
export { Trainer } from './train/trainer.js'
