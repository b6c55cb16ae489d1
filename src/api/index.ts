/// <reference lib="esnext.disposable" preserve="true" />
// The public API. Its exports and types are the same in Node and in browsers; node.ts only sets Node's platform.

// The files of src/api/, in reading order:
//   index.ts, node.ts  the same API everywhere, and in Node with paths and threads
//   verbs.ts           the public functions, which load their code with the first call
//   sources.ts         what a caller gives, as folders and files
//   parts/             what servers of your own need besides
//   export/            handoff and push
//   report/            runs as one HTML file
//   platform/          threads and memory, in Node and in browsers
//   node/              files, threads and modules of rewards

/** @module lowrank */

export {
  type ByteSink,
  type ByteSource,
  type Directory,
  MemoryDirectory,
  type Source,
  type Target,
} from '../core/base/bytes.js'
export type { FloatDtype, TensorDtype, WeightDtype } from '../core/base/dtype.js'
export {
  ConfigError,
  ContextError,
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
} from '../core/base/errors.js'
export type { BlobLike, ByteStreamLike, FileLike, FolderHandle, SignalLike } from '../core/base/globals.js'
export type { ToolEvents, ToolProgress } from '../core/base/progress.js'
export type { FloatArray, Matrix, MatrixLike, Shaped, Tensor } from '../core/base/tensor.js'
export { disposeKernels } from '../core/kernels/index.js'
export type { DownloadProgress, OnDownload } from '../files/io/hub/directory.js'
export {
  FilesDirectory,
  HandleDirectory,
  type OpenStream,
  StreamDirectory,
} from '../files/io/web/directories.js'
export {
  type AdapterPart,
  LoraAdapter,
  type PartOfKind,
} from '../lora/adapter.js'
export type { LoraConfig, LoraConfigInput } from '../lora/config.js'
export type { LayerVectors } from '../lora/factors.js'
export type { Init } from '../lora/init/inits.js'
export type { BaseWeights } from '../lora/init/to-plain.js'
export { ConvolutionLora } from '../lora/kinds/convolution.js'
export { EmbeddingLora } from '../lora/kinds/embedding.js'
export { type BaseLayout, ExpertLora } from '../lora/kinds/experts.js'
export type {
  Replacement,
  ReplacementOptions,
  StoredTensor,
  StoredValues,
  TokenRows,
} from '../lora/kinds/stored.js'
export { LoraLayer } from '../lora/layer.js'
export type { FactorTensors, PartKind, TensorRole } from '../lora/part.js'
export type { LayerGradients } from '../lora/passes.js'
export type { SaveOptions } from '../lora/peft/adapter-folder.js'
export type { AdapterReport, LayerReport, ProblemReport, ReplacementReport } from '../lora/peft/inspect.js'
export type { LoadOptions } from '../lora/peft/open.js'
export type { Spectrum } from '../lora/spectrum.js'
export type { ConvertReport } from '../merge/exchange/convert.js'
export type { ConvertedDtype } from '../merge/exchange/exchange-format.js'
export type { AdapterFormat } from '../merge/exchange/formats.js'
export type { FitReport, PartFit } from '../merge/fit.js'
export type {
  LayerChange,
  MergeFormat,
  MergePlanReport,
  MergeProgress,
  MergeReport,
  MergeSummary,
} from '../merge/merge-report.js'
export type { TiedPolicy } from '../merge/plan/tied.js'
export type { MergeEvents, MergeSettings } from '../merge/settings.js'
export type { CombinationType, CombineResult } from '../merge/tools/combine.js'
export type { AdapterDifference, AdapterLayerDiff, DiffReport } from '../merge/tools/diff.js'
export type { RankReport, ResizeResult } from '../merge/tools/resize.js'
export type { DtypeChoice, GraphDtype } from '../model/graph-file.js'
export type { DecodeImage, ImageSource, RgbImage } from '../model/images/image.js'
export type { ModuleMap } from '../model/match/linears.js'
export type { Model } from '../model/model-folder.js'
export type { ToolForm } from '../model/text/calls/call.js'
export type { CallMatch } from '../model/text/calls/compare.js'
export type { ChatMessage, MessageOfParts, MessagePart } from '../model/text/chat.js'
export type { MessageRecord, TextRecord } from '../model/text/records.js'
export type { TextStream, Tokenizer } from '../model/text/tokenizer.js'
export type { OnnxModel } from '../onnx/format/model.js'
export type { WeightRange } from '../onnx/format/tensors.js'
export type { RuntimeHost } from '../onnx/runtime/host.js'
export type { OrtModule } from '../onnx/runtime/onnxruntime.js'
export type { Feeds, RuntimeTensor, SessionOptions, TensorData, TensorType } from '../onnx/runtime/runtime.js'
export type { AdapterChoice } from '../run/adapters/choice.js'
export type { SamplingOptions } from '../run/generate/sampling.js'
export type {
  AdapterSessionOptions,
  BatchOptions,
  ChatOptions,
  Classification,
  ClassifyInput,
  ClassifyOptions,
  EmbedOptions,
  EncodeOptions,
  Entity,
  GenerateEvents,
  GenerateOptions,
  GenerateResult,
  Precision,
  Prompt,
  PromptImages,
  QuantizedOptions,
  Ranges,
  RankedDocument,
  ReadToken,
  RerankOptions,
  RunOptions,
  ScoreOptions,
  StreamOptions,
  TaggedWord,
  Tagging,
  TagOptions,
  TextOrPair,
  TextOrWords,
  TokenPrompt,
  TokenScore,
} from '../run/session.js'
export type { Interval } from '../train/evaluate/bootstrap.js'
export type { EvaluateEvents, EvaluateSettings } from '../train/evaluate/evaluate-adapters.js'
export type { Difference, DifferingRecord, EvaluatedModel, EvaluateReport } from '../train/evaluate/report.js'
export type { TokenExample, TrainerExample } from '../train/loop/examples.js'
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
} from '../train/loop/graders/forms.js'
export type { OnTurn, Reward, RewardInput, Turn, TurnInput } from '../train/loop/graders/rewards.js'
export type { GrpoOptions } from '../train/loop/grpo-loss.js'
export type { LossFunction, LossName, LossOptions, LossResult, LossRow } from '../train/loop/losses.js'
export type { Trainer } from '../train/loop/trainer.js'
export type {
  ForwardBackwardOptions,
  ForwardBackwardResult,
  Sample,
  SampleOptions,
  StepOptions,
  StepReport,
  TrainerOptions,
  TrainerSaveOptions,
} from '../train/loop/trainer-options.js'
export type { Data, DataFile, DataRecord, TrainOptions, TrainResult } from '../train/options.js'
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
} from '../train/report.js'
export type { DataReport, PreviewExample, PreviewToken } from '../train/rows/check.js'
export type { LengthReport } from '../train/rows/facts.js'
export type { Mined, MineSettings } from '../train/search/mine.js'
export type { Keep, Preset, Schedule, TrainSettings } from '../train/settings.js'
export type { TaskFacts, TaskUse } from '../train/tasks/task.js'
export type { ToPlainOptions } from './adapters.js'
export type { EvaluateOptions, MineOptions } from './evaluation.js'
export type { TrainEvent, TrainRun } from './follow-run.js'
export { configureHub, type DownloadEvents, type HubEvents, type HubOptions } from './hub.js'
export type { CheckpointContents, InspectOptions, InspectReport } from './inspect.js'
export type { EmbeddingContents, GraphContents, LinearContents, OnnxContents } from './inspect-onnx.js'
export type {
  AdapterToMerge,
  MergeOptions,
  UnmergeOptions,
} from './merge-options.js'
export type { LoadModelOptions } from './model.js'
export type { CheckDataOptions } from './open-run.js'
export { nodeRuntime } from './platform/platform.js'
export { webRuntime } from './platform/web-runtime.js'
export type { AdapterSession, OpenSessionOptions, SessionEvents } from './session.js'
export type {
  CombineOptions,
  ConvertAdapterOptions,
  DiffOptions,
  ResizeOptions,
} from './tools.js'
export {
  checkData,
  combine,
  convertAdapter,
  diff,
  evaluate,
  inspect,
  loadAdapter,
  loadModel,
  merge,
  mineNegatives,
  openSession,
  openTrainer,
  planMerge,
  resize,
  saveAdapter,
  toPlain,
  train,
  trainingTasks,
  unmerge,
} from './verbs.js'
