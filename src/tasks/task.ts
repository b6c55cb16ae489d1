// The differences between tasks, and nothing else: how a row of data becomes an example, what
// is built on the model's outputs, what its loss is divided by, and what is told of it.

import type { OptionTable } from '../base/options.js'
import type { Random } from '../base/random.js'
import type { HeadForm } from '../families/family.js'
import type { Model } from '../graph/model-folder.js'
import type { Objective } from '../graph/training/objective-graph.js'
import type { DecodeImage, ImageSource } from '../images/image.js'
import type { Feeds, RuntimeTensor } from '../runtime/runtime.js'
import type { MessageOfParts } from '../text/chat.js'
import type { ChatTemplate } from '../text/template.js'
import type { HeadBase } from './heads/heads.js'
import type { ProblemType } from './labels/label-problems.js'
import type { PictureEncoder } from './pictures/encoder.js'

/** The model and the limits that a row is encoded for. */
export interface EncodeContext {
  readonly model: Model
  /** Most tokens of an example; infinite where nothing limits it. */
  readonly maxLength: number
  /** True if the caller asked for that limit: longer texts are to be cut. */
  readonly isLimited?: boolean | undefined
  /** The model's chat template; undefined where it has none. Throws FormatError when it has one that cannot be used. */
  chatTemplate(): ChatTemplate | undefined
  /** Further variables of the chat template. */
  readonly chatTemplateArgs: Readonly<Record<string, unknown>> | undefined
  /** Reads files of pictures; undefined where nothing does. */
  readonly decodeImage?: DecodeImage | undefined
  /** Reads pictures beside texts; undefined for a model without a vision encoder. */
  readonly pictures?: PictureEncoder | undefined
}

/** Examples in order: a list, or something smaller that is one to its users. */
export interface Examples<Example> extends Iterable<Example> {
  readonly length: number
  /** {@link OpenTask.cost} of each, where no example need be read for it. */
  readonly costs?: Int32Array
  at(index: number): Example | undefined
  /** Gives an example two numbers, which it has as `before` from then on. */
  mark?(index: number, before: readonly [number, number]): void
}

/** The examples of one row. */
export interface Encoded<Example> {
  /** Usually one; none where no target is left. */
  readonly examples: readonly Example[]
  /** It was longer than the limit. */
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
  /** lowrank's command, its option for the input, and an input to try; undefined where no command runs them. */
  readonly command?: readonly [name: string, option: string, input: string]
  /** The Hub's name of the task, which transformers.js's pipelines have too. */
  readonly pipeline: string
  /** The class of transformers that loads the base. */
  readonly autoClass: string
  /** True where transformers.js runs them only merged. */
  readonly onlyMerged?: boolean
  /** Further tags of the model card. */
  readonly tags?: readonly string[]
}

/** Facts of a task for people: help texts, model cards and the page have them from here. */
export interface TaskFacts {
  /** As users name it: causal-lm */
  readonly name: string
  /** Words that follow "learns": to continue texts */
  readonly learns: string
  /** A sample record of each form. Records with these fields are of this task. */
  readonly records: readonly Readonly<Record<string, unknown>>[]
  readonly use: TaskUse
  /** How the page offers it; undefined where the page cannot show the result. */
  readonly page?: {
    /** A sentence: "The adapter will learn labels for texts." */
    readonly lesson: string
    /** The unit of its speed. */
    readonly unit: 'tokens' | 'pictures'
    /** Settings that suit a short run. */
    readonly settings: { readonly maxSteps: number; readonly learningRate: number; readonly batchSize: number }
  }
  /**
   * The highest learning rate where nothing is said, with LoRA+ 16; undefined for one that fits the width of the model.
   * docs/learning.md has the measurements.
   */
  readonly learningRate?: number
}

/** One file of this folder, and one line in its table. */
export interface Task<Row = unknown, Example = unknown, Options extends object = Record<string, unknown>>
  extends TaskFacts {
  /** PEFT's task_type in adapter_config.json; undefined where it has none for this. */
  readonly peftType: string | undefined
  /** Its adapters can be turned on by tokens of the prompt (`aloraInvocationTokens`). Default false. */
  readonly takesInvocation?: boolean
  /** The share of the rate by width that it takes; undefined for all of it. */
  readonly rateShare?: number
  /** Its metrics that are better when they are lower, as the loss is. */
  readonly lowerIsBetter?: readonly string[]
  /** The settings that it has of its own, and what each may be; undefined for none. */
  readonly options?: OptionTable
  /**
   * The layers between the model's hidden states and the logits; undefined for tasks without a head, and for a head
   * that is not known.
   */
  headForm?(base: HeadBase): HeadForm | undefined
  /** Throws UnsupportedError when the model is not one for this task: before any data is read. */
  check(model: Model): void
  /** Returns a row of data as what the task learns from. Throws DataError when it has not the fields. */
  parse(row: unknown, where: string): Row
  /** Reads what a row names, such as files. */
  load?(row: Row, context: EncodeContext): Promise<Row>
  /** Throws FormatError, MismatchError or ConfigError when the model's tokenizer cannot be used. */
  encode(row: Row, context: EncodeContext): Encoded<Example>
  /** The prompt that the model answers, and the wanted answer; undefined for a row without one. For tasks of texts. */
  question?(row: Row, context: EncodeContext): Question | undefined
  /** For previews: the tokens of an example, which of them are targets, and the label of the whole, if it has one. */
  tokens?(example: Example): { readonly ids: Int32Array; counts(index: number): boolean; readonly label?: string }
  /** How the graph of an evaluation writes texts, token by token; undefined for tasks that write none. */
  readonly writing?: {
    /** The tokens of a prompt; with `isChat` it is a question, and the chat template is around it. */
    prompt(text: string, context: EncodeContext, isChat: boolean): readonly number[]
    /** An example whose one target follows these tokens. */
    next(ids: readonly number[]): Example
    /** The most likely token of each example, from the outputs of {@link Objective.forward}. */
    chosen(outputs: Readonly<Record<string, RuntimeTensor>>): number[]
  }
  /** Several short examples in one, of at most `length` tokens, for tasks that can keep them apart. */
  pack?(examples: Examples<Example>, length: number): Examples<Example>
  /**
   * Fixes what the training examples decide. Throws DataError when they do not, ConfigError for options that do not fit
   * them.
   */
  open(model: Model, examples: Examples<Example>, options?: Options, heads?: HeadOptions): OpenTask<Example>
}

/** Which head is trained. */
export interface HeadOptions {
  /** A new one, also where the model has one that fits. Default false. */
  readonly newHead?: boolean
}

/** Layers behind the model's outputs that are trained whole. */
export interface Head {
  /** PEFT's modules_to_save: the modules that hold the tensors. */
  readonly modulesToSave: readonly string[]
  /** New tensors that are trained whole. */
  readonly tensors: readonly {
    /** In the PyTorch model, as in classifier.weight; {@link ObjectiveGraph.parameter} has the same. */
    readonly name: string
    readonly shape: readonly number[]
    /** Its values before the first step. */
    start(random: Random): Promise<Float32Array>
  }[]
  /** It starts as transformers starts a new one, and not with that of the model. */
  readonly isNew: boolean
  /** The name that a module of the graph has in the PyTorch model with the head. */
  moduleName(name: string): string
}

/** One run of a step's first pass: its examples, and what {@link Objective.forward} gave out of them. */
export interface StepRun<Example> {
  readonly outputs: Readonly<Record<string, RuntimeTensor>>
  readonly examples: readonly Example[]
}

/** A task for one model and one set of examples. */
export interface OpenTask<Example = unknown> extends Objective {
  /** Undefined where the task trains no tensors but the adapter's factors. */
  readonly head?: Head
  /** Names of the logits, in their order. */
  readonly labels?: readonly string[]
  /** The kind of labels, in transformers' words. */
  readonly problemType?: ProblemType
  /** Warnings about the examples, before they are trained on. */
  readonly warnings?: readonly string[]
  /**
   * How adapters of this model are run, where PEFT's class for the task's type cannot run it: their folder has no type,
   * for PEFT's plain class.
   */
  readonly plainUse?: TaskUse | undefined
  /** Throws DataError, with the record, for an example of the evaluation data that has a target which no other had. */
  checkEvaluation?(example: Example): void
  /** Rows of a run that one example takes. Default 1. */
  readonly rowsOfExample?: number
  /**
   * Examples are compared with those that stand beside them in the data: batches keep the order of the data, and have
   * at least two. Default: any batches.
   */
  readonly needsNeighbors?: boolean
  /** Tokens of an example: examples of like cost run together. */
  cost(example: Example): number
  /** Reads what {@link collate} needs of these examples, and forgets that of earlier ones. */
  prepare?(examples: readonly Example[]): Promise<void>
  /**
   * The tensors of one run, targets included.
   *
   * @param length what tokens are filled up to: at least the largest cost
   */
  collate(examples: readonly Example[], length: number): Feeds
  /**
   * The divisor of the loss of some examples. Over the runs of a step it adds up, so that accumulating changes no
   * result.
   */
  normalizer(examples: readonly Example[]): number
  /**
   * The loss of all runs of a step together, for tasks whose examples need one another: a step takes two passes then.
   *
   * @returns the mean over the examples, and for each run what its fed gradients are
   */
  stepLoss?(runs: readonly StepRun<Example>[]): { readonly loss: number; readonly feeds: readonly Feeds[] }
  /**
   * For a loss that compares the model with itself before the first step: two numbers for each example, from what
   * {@link Objective.forward} gave out then. Each example gets them as `before`, before its loss is wanted.
   */
  reference?(outputs: Readonly<Record<string, RuntimeTensor>>): (readonly [number, number])[]
  /** The prediction for each example of one run without gradients, from the outputs of {@link Objective.forward}. */
  predict?(outputs: Readonly<Record<string, RuntimeTensor>>, examples: readonly Example[]): unknown[]
  /** The loss of each example, from {@link predict}. Without it, an evaluation runs each example alone to know it. */
  exampleLosses?(predictions: readonly unknown[]): number[]
  /** The values of each example, for metrics that are means over the examples. Default: no metric is. */
  values?(predictions: readonly unknown[]): Record<string, readonly number[]>
  /** Numbers that say how good the model is, by name: of the loss over all examples, and of what was predicted. */
  metrics(result: Evaluated<Example>): Record<string, number>
}

/** The loss over all examples of an evaluation, and what was predicted for each. */
export interface Evaluated<Example> {
  readonly loss: number
  readonly examples: readonly Example[]
  readonly predictions: readonly unknown[]
}
