/// <reference lib="esnext.disposable" preserve="true" />
// The public API. Its exports and types are the same in Node and in browsers; src/node.ts only sets Node's platform.

/** @module lowrank */

export {
  type ByteSink,
  type ByteSource,
  type Directory,
  MemoryDirectory,
  type Source,
  type Target,
} from './base/bytes.js'
export type { FloatDtype, TensorDtype, WeightDtype } from './base/dtype.js'
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
  RuntimeError,
  ShapeError,
  StateError,
  UnsupportedError,
} from './base/errors.js'
export type { BlobLike, ByteStreamLike, FileLike, FolderHandle, SignalLike } from './base/globals.js'
export type { ToolProgress } from './base/progress.js'
export type { FloatArray, Matrix, MatrixLike, Shaped, Tensor } from './base/tensor.js'
export type { Interval } from './evaluate/bootstrap.js'
export type {
  Difference,
  DifferingRecord,
  EvaluatedModel,
  EvaluateReport,
  EvaluateSettings,
} from './evaluate/evaluate-adapters.js'
export type { ConvertReport } from './exchange/convert.js'
export type { ConvertedDtype } from './exchange/exchange-format.js'
export type { AdapterFormat } from './exchange/formats.js'
export type { OnnxModel } from './formats/onnx/model.js'
export type { WeightRange } from './formats/onnx/tensors.js'
export type { DtypeChoice, GraphDtype } from './graph/graph-file.js'
export type { ModuleMap } from './graph/match/linears.js'
export type { Model } from './graph/model-folder.js'
export type { DecodeImage, ImageSource, RgbImage } from './images/image.js'
export type { ToPlainOptions } from './index/adapters.js'
export type { EvaluateOptions } from './index/evaluation.js'
export { configureHub, type HubOptions } from './index/hub.js'
export type { CheckpointContents, InspectOptions, InspectReport } from './index/inspect.js'
export type { EmbeddingContents, GraphContents, LinearContents, OnnxContents } from './index/inspect-onnx.js'
export type {
  AdapterToMerge,
  MergeOptions,
  UnmergeOptions,
} from './index/merge-options.js'
export type { LoadModelOptions } from './index/model.js'
export { nodeRuntime } from './index/platform/platform.js'
export { webRuntime } from './index/platform/web-runtime.js'
export type { AdapterSession, OpenSessionOptions } from './index/session.js'
export type {
  CombineOptions,
  ConvertAdapterOptions,
  DiffOptions,
  ExtractOptions,
  ResizeOptions,
} from './index/tools.js'
export type { CheckDataOptions } from './index/train.js'
export type { TrainEvent, TrainRun } from './index/train-run.js'
export {
  checkData,
  combine,
  convertAdapter,
  diff,
  evaluate,
  extract,
  inspect,
  loadAdapter,
  loadModel,
  merge,
  openSession,
  openTrainer,
  planMerge,
  resize,
  saveAdapter,
  toPlain,
  train,
  trainingTasks,
  unmerge,
} from './index/verbs.js'
export type { AdapterChoice } from './infer/adapters/choice.js'
export type { SamplingOptions } from './infer/generate/sampling.js'
export type {
  AdapterSessionOptions,
  BatchOptions,
  ChatOptions,
  Classification,
  ClassifyInput,
  ClassifyOptions,
  EmbedOptions,
  Entity,
  GenerateOptions,
  GenerateResult,
  Prompt,
  PromptImages,
  RunOptions,
  StreamOptions,
  TaggedWord,
  Tagging,
  TagOptions,
  TextOrPair,
  TextOrWords,
  TokenScore,
} from './infer/session.js'
export type { DownloadProgress, OnDownload } from './io/hub/directory.js'
export {
  FilesDirectory,
  HandleDirectory,
  type OpenStream,
  StreamDirectory,
} from './io/web/directories.js'
export { disposeKernels } from './kernels/index.js'
export type { TokenExample, TrainerExample } from './loop/examples.js'
export type { GrpoOptions } from './loop/grpo-loss.js'
export type { LossFunction, LossName, LossOptions, LossResult, LossRow } from './loop/losses.js'
export type { Trainer } from './loop/trainer.js'
export type {
  ForwardBackwardOptions,
  ForwardBackwardResult,
  Sample,
  SampleOptions,
  StepOptions,
  StepReport,
  TrainerOptions,
} from './loop/trainer-options.js'
export {
  type AdapterPart,
  LoraAdapter,
  type PartOfKind,
} from './lora/adapter.js'
export type { LoraConfig, LoraConfigInput } from './lora/config.js'
export type { LayerVectors } from './lora/factors.js'
export type { Init } from './lora/init/inits.js'
export type { BaseWeights } from './lora/init/to-plain.js'
export { ConvolutionLora } from './lora/kinds/convolution.js'
export { EmbeddingLora } from './lora/kinds/embedding.js'
export { type BaseLayout, ExpertLora } from './lora/kinds/experts.js'
export type {
  Replacement,
  ReplacementOptions,
  StoredTensor,
  StoredValues,
  TokenRows,
} from './lora/kinds/stored.js'
export { LoraLayer } from './lora/layer.js'
export type { FactorTensors, PartKind, TensorRole } from './lora/part.js'
export type { LayerGradients } from './lora/passes.js'
export type { Spectrum } from './lora/spectrum.js'
export type { FitReport, PartFit } from './merge/fit.js'
export type {
  LayerChange,
  MergeFormat,
  MergePlanReport,
  MergeProgress,
  MergeReport,
  MergeSummary,
} from './merge/merge-report.js'
export type { TiedPolicy } from './merge/plan/tied.js'
export type { MergeSettings } from './merge/settings.js'
export type { SaveOptions } from './peft/adapter-folder.js'
export type { AdapterReport, LayerReport, ProblemReport, ReplacementReport } from './peft/inspect.js'
export type { LoadOptions } from './peft/open.js'
export type { RuntimeHost } from './runtime/host.js'
export type { OrtModule } from './runtime/onnxruntime.js'
export type { Feeds, RuntimeTensor, SessionOptions, TensorData, TensorType } from './runtime/runtime.js'
export type { TaskFacts, TaskUse } from './tasks/task.js'
export type { ChatMessage, MessageOfParts, MessagePart } from './text/chat.js'
export type { MessageRecord, TextRecord } from './text/records.js'
export type { TextStream, Tokenizer } from './text/tokenizer.js'
export type { CombineResult } from './tools/combine.js'
export type { CombinationType } from './tools/combine-settings.js'
export type { AdapterDifference, AdapterLayerDiff, DiffReport } from './tools/diff.js'
export type { ExtractedLayer, ExtractResult } from './tools/extract.js'
export type { RankReport, ResizeResult } from './tools/resize.js'
export type {
  Grader,
  GraderContent,
  GraderMessage,
  GraderModel,
  GraderServer,
  GraderSession,
  Judge,
  JudgeMessage,
  JudgeOptions,
  LabelModelGrader,
  MultiGrader,
  SamplingParams,
  ScoreModelGrader,
  StringCheckGrader,
  TextSimilarityGrader,
} from './train/graders.js'
export type { Data, DataFile, DataRecord, TrainOptions, TrainResult } from './train/options.js'
export type { OnTurn, Reward, RewardInput, Turn, TurnInput } from './train/rewards.js'
export type { DataReport, PreviewExample, PreviewToken } from './train/rows/check.js'
export type { LengthReport } from './train/rows/facts.js'
export type { Keep, Preset, Schedule, TrainSettings } from './train/settings.js'
export type {
  EvaluationEvent,
  MemoryUse,
  ProgressEvent,
  RewardMetrics,
  SampleEvent,
  StepEvent,
  StepMetrics,
  TrainEvents,
  TrainReport,
  TrainStage,
} from './train/train-report.js'
