// A task: everything that differs between tasks, from rows of data to losses, metrics, help texts and model cards.

import type { OptionTable } from '../../core/base/options.js'
import type { DecodeImage, ImageSource } from '../../model/images/image.js'
import type { Model, TextModel } from '../../model/model-folder.js'
import type { Prompts } from '../../model/sentence-modules.js'
import type { TakenTools } from '../../model/text/calls/take-tools.js'
import type { MessageOfParts } from '../../model/text/chat.js'
import type { ChatTemplate } from '../../model/text/template.js'
import type { Feeds, RuntimeTensor } from '../../onnx/runtime/runtime.js'
import type { Objective } from '../graph/objective-graph.js'
import type { OnTurn, Reward } from '../loop/graders/rewards.js'
import type { ProblemType } from './labels/label-problems.js'
import type { PictureEncoder } from './pictures/encoder.js'
import type { HeadOptions, TrainedHead } from './trained-head.js'

export type TaskName =
  | ('causal-lm' | 'dpo' | 'embedding' | 'image-classification' | 'kto' | 'reranking' | 'seq2seq')
  | ('text-classification' | 'token-classification' | 'grpo' | 'distill')

/** A model at a server with OpenAI's API: its address up to /v1. */
export interface TeacherServer {
  readonly url: string
}

/** What few tasks learn from beside records. */
export interface TaskInputs {
  readonly rewards?: readonly Reward[] | undefined
  readonly onTurn?: OnTurn | undefined
  readonly teacher?: Model | TeacherServer | undefined
  readonly taskOptions?: Readonly<Record<string, unknown>> | undefined
}

/** The model and the limits that a row is encoded for. */
export interface EncodeContext {
  readonly model: TextModel
  /** Most tokens of an example; may be infinite. */
  readonly maxLength: number
  /** True if the caller asked for that limit, so that longer texts are cut. */
  readonly isLimited?: boolean | undefined
  /** The model's chat template, or undefined if it has none. Throws FormatError if the template cannot be used. */
  chatTemplate(): ChatTemplate | undefined
  readonly chatTemplateArgs: Readonly<Record<string, unknown>> | undefined
  readonly decodeImage?: DecodeImage | undefined
  /** Reads pictures beside texts; undefined for a model without a vision encoder. */
  readonly pictures?: PictureEncoder | undefined
  /** Takes the functions of a chat whose prompt does not describe them, with `toolsInAdapter`. */
  readonly tools?: TakenTools | undefined
  /** The settings of the task. */
  readonly taskOptions?: Readonly<Record<string, unknown>> | undefined
  /** True if rows that a provider's model wrote may be read. */
  readonly termsRead?: boolean | undefined
}

/** Examples in order: an array, or a more compact store with the same members. */
export interface Examples<Example> extends Iterable<Example> {
  readonly length: number
  /** {@link OpenTask.cost} of each, if known without reading the examples. */
  readonly costs?: Int32Array
  at(index: number): Example | undefined
  /** Stores two numbers that the model gave for the example before training, as its `before`. */
  mark?(index: number, before: readonly [number, number]): void
}

export interface Encoded<Example> {
  /** The examples, usually one. Empty if no target is left. */
  readonly examples: readonly Example[]
  readonly isTruncated: boolean
  /** Parts of the row that are not learned, each as the end of a sentence: "3 of 10 records …". */
  readonly notes?: readonly string[]
}

/** A prompt with its pictures, and the answer that is wanted. */
export interface Question {
  readonly prompt: string | readonly MessageOfParts[]
  readonly answer: string
  readonly images?: readonly ImageSource[] | undefined
}

/** How adapters of a task are run: what the model card and the command line show. */
export interface TaskUse {
  /** lowrank's command, its option for the input, and an input to try; undefined if no command runs them. */
  readonly command?: readonly [name: string, option: string, input: string]
  /** The Hub's name of the task, which transformers.js's pipelines have too. */
  readonly pipeline: string
  /** The class of transformers that loads the base. */
  readonly autoClass: string
  /** True if transformers.js can run these adapters only after they are merged. */
  readonly onlyMerged?: boolean
  readonly tags?: readonly string[]
}

/** Facts about a task for help texts, model cards and the page. */
export interface TaskFacts {
  /** The task's name for users, such as causal-lm. */
  readonly name: string
  /** What adapters of the task learn, such as "to continue texts". */
  readonly learns: string
  /** A sample record of each form. Data with these fields is taken for this task. */
  readonly records: readonly Readonly<Record<string, unknown>>[]
  readonly use: TaskUse
  /** How the page offers it; undefined if the page cannot show the result. */
  readonly page?: {
    /** A sentence: "The adapter will learn labels for texts." */
    readonly lesson: string
    readonly unit: 'tokens' | 'pictures'
    readonly settings: { readonly maxSteps: number; readonly learningRate: number; readonly batchSize: number }
  }
  /**
   * The task's own default of the highest learning rate, for which the LoRA+ ratio is 16 by default. If undefined, the
   * rate is derived from the model's width, and the ratio is 1. docs/learning.md has the measurements.
   */
  readonly learningRate?: number
  /** The LoRA+ ratio with that rate, if not 16. */
  readonly loraPlusRatio?: number
  /** The task's own defaults of passes over the data, and of the records in a step. docs/search.md says why. */
  readonly epochs?: number
  readonly stepSize?: number
}

export interface ShownTokens {
  readonly ids: Int32Array
  counts(index: number): boolean
  readonly label?: string
  /** How many tokens stand there a second time, such as a prompt with two answers. */
  readonly repeated?: number
}

/** A task: one file of this folder, and one line in the table of tasks.ts. */
export interface Task<Row = unknown, Example = unknown, Options extends object = Record<string, unknown>>
  extends TaskFacts {
  /** PEFT's task_type in adapter_config.json; undefined if PEFT has none for this task. */
  readonly peftType: string | undefined
  /** The default learning rate, which follows from the model's width, is multiplied by this factor. Default 1. */
  readonly rateShare?: number
  /** Metrics that, like the loss, should be low. */
  readonly lowerIsBetter?: readonly string[]
  /** Options that only this task takes. */
  readonly options?: OptionTable
  /** Options of `train` that only few tasks read. */
  takes?(taskOptions?: TaskInputs['taskOptions']): readonly string[]
  /**
   * True if the texts that are learned come during the run, and the records are prompts at most. No record chooses such
   * a task by its fields.
   */
  readonly writesTexts?: boolean
  /**
   * Throws UnsupportedError, before any data is read, if the model does not suit the task, and ConfigError if what is
   * given does not. Without `given`, only the model is checked.
   */
  check(model: Model, given?: TaskInputs): void
  /** The fields of a row that are read, if not those of `records` alone. */
  reads?(row: Readonly<Record<string, unknown>>): readonly string[]
  /** Reads a row of data. Throws DataError if fields are missing or wrong. */
  parse(row: unknown, where: string): Row
  /** For search: a question, its document and wrong documents for each example; undefined if a row has none. */
  pairs?(row: Row): readonly (readonly string[])[] | undefined
  /** Reads the files that a row names. */
  load?(row: Row, context: EncodeContext): Promise<Row>
  /** Makes examples of a row. Throws FormatError, MismatchError or ConfigError if the tokenizer cannot be used. */
  encode(row: Row, context: EncodeContext): Encoded<Example>
  /** For tasks that write texts: the row's prompt and the wanted answer; undefined if it has no question. */
  question?(row: Row, context: EncodeContext): Question | undefined
  /** For previews: an example's tokens, and which of them are targets. */
  tokens?(example: Example): ShownTokens
  /** How to write samples with the graph of an evaluation, token by token, for tasks that write texts. */
  readonly writing?: {
    /** The tokens of a prompt; if `isChat`, of a question within the chat template. */
    prompt(text: string, context: EncodeContext, isChat: boolean): readonly number[]
    /** An example whose only target is the token after these. */
    next(ids: readonly number[]): Example
    /** The most likely token of each example, from the outputs of {@link Objective.forward}. */
    chosen(outputs: Readonly<Record<string, RuntimeTensor>>): number[]
  }
  /** Packs short examples together, at most `length` tokens each, for tasks that can keep them apart. */
  pack?(examples: Examples<Example>, length: number): Examples<Example>
  /**
   * Fixes what depends on the training examples, such as the labels. Throws DataError if they do not fit together, and
   * ConfigError if the options do not fit them.
   */
  open(model: Model, examples: Examples<Example>, options?: Options, given?: OpenOptions): OpenTask<Example>
}

export interface OpenOptions extends HeadOptions, Pick<TaskInputs, 'teacher'> {}

/**
 * `classify` and `embed` read a text as far as the model can, whatever the run's `maxLength` is, so that is what an
 * evaluation measures.
 */
export function isEvaluatedWhole({ use: { command } }: Pick<Task, 'use'>): boolean {
  return command !== undefined && command[0] !== 'generate'
}

/** One run of a step's first pass: its examples, and the outputs of {@link Objective.forward}. */
export interface StepRun<Example> {
  readonly outputs: Readonly<Record<string, RuntimeTensor>>
  readonly examples: readonly Example[]
}

/** The vector that a guide has for a text. */
export type GuideVectors = (text: string, isQuery: boolean) => Float32Array

/** A task for one model and one set of examples. */
export interface OpenTask<Example = unknown> extends Objective {
  /** The head, if the task trains one besides the adapter. */
  readonly head?: TrainedHead
  /** What was put before the texts, if the options say so: adapters keep it. */
  readonly prompts?: Prompts | undefined
  /** If another model guides the loss: the texts of an example, a query first, and what takes their vectors. */
  readonly guided?: { texts(example: Example): readonly string[]; take(vectors: GuideVectors): void } | undefined
  /** Names of the logits, in order. */
  readonly labels?: readonly string[]
  /** The kind of labels, in transformers' words. */
  readonly problemType?: ProblemType
  /** Warnings about the examples, before they are trained on. */
  readonly warnings?: readonly string[]
  /**
   * How adapters of this model are run if PEFT's class for the task's type cannot run them. Their folder then has no
   * type, so that PEFT uses its plain class.
   */
  readonly plainUse?: TaskUse | undefined
  /** Throws DataError for an evaluation example whose target the training data does not have. */
  checkEvaluation?(example: Example): void
  /** The metric that chooses the weights and their strength, if the caller names none. */
  readonly chooses?: string | undefined
  /** Further examples whose predictions an evaluation needs, such as the other documents that a question may find. */
  others?(trained: Examples<Example>, evaluated: Examples<Example>): Examples<Example>
  /** Rows of a run for each example. Default 1. */
  readonly rowsOfExample?: number
  /** Rows that run together, if the setting `batchSize` counts something else, such as prompts. */
  readonly rowsOfBatch?: number | undefined
  /** True if runs with and without gradients take turns, so that the sessions of both stay open. Default false. */
  readonly takesTurns?: boolean
  /**
   * True if an example is compared with its neighbors in the data: batches then keep the order of the data and have at
   * least two examples. Default false.
   */
  readonly needsNeighbors?: boolean
  /** Tokens of an example. Examples of similar cost run together. */
  cost(example: Example): number
  /** Reads what {@link collate} needs for these examples, and drops what earlier examples needed. */
  prepare?(examples: readonly Example[]): Promise<void>
  /** Makes the feeds of one run, including the targets. `length` is the padded length: at least the largest cost. */
  collate(examples: readonly Example[], length: number): Feeds
  /** The divisor of the examples' loss. The runs of a step add up their divisors, so accumulation changes no result. */
  normalizer(examples: readonly Example[]): number
  /**
   * Computes the loss of a whole step, for tasks that compare examples of different runs. The step then takes two
   * passes. Returns the mean over the examples, and the gradients to feed to each run.
   */
  stepLoss?(runs: readonly StepRun<Example>[]): { readonly loss: number; readonly feeds: readonly Feeds[] }
  /**
   * For a loss that compares with the model before training: returns two numbers per example, from the outputs of
   * {@link Objective.forward} at that time. Examples have them as `before` when their loss is computed.
   */
  reference?(outputs: Readonly<Record<string, RuntimeTensor>>): (readonly [number, number])[]
  /** The prediction for each example of a run without gradients, from the outputs of {@link Objective.forward}. */
  predict(outputs: Readonly<Record<string, RuntimeTensor>>, examples: readonly Example[]): unknown[]
  /** The loss of each example, from {@link predict}. Without this, an evaluation runs examples one at a time for it. */
  exampleLosses?(predictions: readonly unknown[]): number[]
  /** The values per example of metrics that are means over the examples. */
  values?(result: Omit<Evaluated<Example>, 'loss'>): Record<string, readonly number[]>
  metrics(result: Evaluated<Example>): Record<string, number>
}

/** The loss over all examples of an evaluation, and the prediction for each. */
export interface Evaluated<Example> {
  readonly loss: number
  readonly examples: readonly Example[]
  readonly predictions: readonly unknown[]
  /** The predictions of {@link OpenTask.others}, in an evaluation during a run. */
  readonly others?: readonly unknown[] | undefined
}
