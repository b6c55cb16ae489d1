// The options and the result of a training run.

import type { ByteSource, Directory, Source, Target } from '../core/base/bytes.js'
import type { BlobLike, SignalLike } from '../core/base/globals.js'
import type { ColumnNames } from '../files/data/row.js'
import type { LoraAdapter } from '../lora/adapter.js'
import type { LoraConfigInput } from '../lora/config.js'
import type { DtypeChoice } from '../model/graph-file.js'
import type { DecodeImage } from '../model/images/image.js'
import type { ModuleMap } from '../model/match/linears.js'
import type { Model } from '../model/model-folder.js'
import type { ToolForm } from '../model/text/calls/call.js'
import type { TextRecord } from '../model/text/records.js'
import type { Grader, GraderModel } from './loop/graders/forms.js'
import type { OnTurn, Reward } from './loop/graders/rewards.js'
import type { TrainEvents, TrainReport } from './report.js'
import type { Preset, TrainSettings } from './settings.js'
import type { TaskName, TeacherServer } from './tasks/task.js'

/**
 * A file of records, or a folder of such files: its path (not in browsers), a Blob such as a picked File, or one that
 * is open.
 */
export type DataFile = string | BlobLike | ByteSource | Directory

/**
 * One record: a {@link TextRecord}, one with other field names (`columns`), or one of another task, such as `{ text,
 * label }`.
 */
export type DataRecord = TextRecord | Readonly<Record<string, unknown>>

/** Records, or files of them: JSONL, JSON, CSV, TSV, Parquet, text. */
export type Data = DataFile | readonly DataFile[] | Iterable<DataRecord> | AsyncIterable<DataRecord>

/** The same with open files. */
export type TrainingData =
  | Iterable<DataRecord>
  | AsyncIterable<DataRecord>
  | ByteSource
  | Directory
  | readonly (ByteSource | Directory)[]

/** A token as tokenizer.json spells it, or its id. */
export type TokenChoice = string | number

/** Tokens whose rows of the input embedding are trained; or tokens by module, by its name or the end of its name. */
export type TrainedTokens = readonly TokenChoice[] | Readonly<Record<string, readonly TokenChoice[]>>

type Optional<T> = { readonly [K in keyof T]?: T[K] | undefined }

/** Options of {@link train}. */
export interface TrainOptions extends Optional<TrainSettings> {
  /**
   * The base: an open model (`train` does not close it), or any source that {@link loadModel} accepts. Its weights are
   * read, never changed.
   */
  readonly model: Model | Source
  /** Which graph of a model that is not open yet: see {@link loadModel}. */
  readonly dtype?: DtypeChoice | undefined
  /**
   * The training data: records; the path of a file or folder with records (JSONL, JSON, CSV, TSV, Parquet, text); a
   * Blob; or a list of files. Files may be packed (.jsonl.gz); `-` is standard input in Node.
   * @help training data: .jsonl, .json, .csv, .tsv, .parquet or .txt, packed (.gz) or not; a folder; - is stdin
   */
  readonly data: Data
  /**
   * Records for measuring the loss before and after training; with `grpo` and `distill` prompts, whose texts are
   * measured. Same forms as `data`.
   * @help evaluation data: lowrank measures the loss on it before and after training
   */
  readonly evalData?: Data | undefined
  /**
   * Trains this adapter further instead of a new one: one in memory, whose factors are changed in place, or a folder of
   * PEFT, such as one that comes back from TRL, which stays as it is.
   * @flag DIR|ID
   * @help an adapter to train further instead of a new one, such as one that comes back from TRL; its folder stays as
   * it is
   */
  readonly adapter?: LoraAdapter | Source | undefined
  /**
   * The folder for adapter, metrics and state. Without it nothing is written.
   * @flag DIR
   * @help new folder for the adapter; required without --gate
   */
  readonly out?: Target | undefined
  /**
   * The task. Default: the one that the fields of the first record fit, such as `dpo` for `chosen` and `rejected`, if
   * the model can be trained for it; else `causal-lm`, or `seq2seq` for a model with an encoder and a decoder.
   */
  readonly task?: TaskName | undefined
  /**
   * For the task `grpo`: what judges a text by a number. Functions, graders in the form of OpenAI, or the path of a
   * JSON file with graders, or of a module that exports functions, perhaps with `weights` by their names. Such a module
   * is code that runs: only name one that you trust.
   * @flag FILE
   * @help for the task grpo: graders of OpenAI (.json), or a module (.js, .mjs, or .ts with Node 22.18) whose exported
   * functions judge texts by a number, and whose `weights` may weigh them. A module is code that runs
   */
  readonly rewards?: readonly (Reward | Grader)[] | string | undefined
  /**
   * What answers for the models that graders name: the address of a server with OpenAI's API, up to /v1; `{ url, key,
   * model }`; a session; or a function. The session under the name `cosine` compares texts by its encoder.
   * @flag NAME=URL,…
   * @help the models that graders name, with the address of a server for each, up to /v1. LOWRANK_GRADER_KEY is their
   * key
   */
  readonly graderModels?: Readonly<Record<string, GraderModel>> | undefined
  /**
   * For the task `grpo`: answers texts of the model, such as calls of tools, after which it goes on. Nothing of an
   * answer is learned.
   */
  readonly onTurn?: OnTurn | undefined
  /**
   * For the task `distill`: the model that the model learns from, or the address of a server with OpenAI's API, up to
   * /v1, whose `taskOptions.teacherModel` teaches. For the loss CachedGISTEmbed of embedding: the guide, a model.
   * @flag DIR|ID|URL
   * @help for the task distill: the model to learn from, or the address of a server up to /v1. LOWRANK_TEACHER_KEY is
   * its key
   */
  readonly teacher?: Model | Source | undefined
  /**
   * Settings that only this task has, such as the temperature of its loss.
   * @help settings of the task, such as scale=30 of embedding or beta=0.1 of dpo
   */
  readonly taskOptions?: Readonly<Record<string, unknown>> | undefined
  /**
   * How many records that are not valid are left out. With more, training ends before its first step.
   * @range an integer of at least 0
   * @default 0
   */
  readonly skipInvalid?: number | undefined
  /**
   * Also trains on records that a provider's model wrote, as their `source` says: `{ provider: 'openai', model: … }`.
   * Read the provider's terms first. Default false: such a record is an error that names the clause.
   */
  readonly termsRead?: boolean | undefined
  /**
   * Share of the records that is used as `evalData` and not trained on. The seed decides which records. Default: none,
   * and for search 15 % of the pairs of questions and documents, at least 30 (none of fewer than 100 pairs).
   * @range a number in [0, 1)
   */
  readonly evalSplit?: number | undefined
  /**
   * Field of a record → its name in your data: `{ prompt: 'question', completion: 'answer' }`. Other fields are left
   * out.
   * @help names of the fields in your data, as LOWRANK_NAME=YOUR_NAME, such as prompt=question,completion=answer
   */
  readonly columns?: ColumnNames | undefined
  /**
   * Text of a chat template (Jinja), or the name of one that the model has. Default: the model's own.
   * @flag FILE
   * @help file with a chat template (Jinja) to use instead of the model's own
   */
  readonly chatTemplate?: string | undefined
  /**
   * Further variables of the chat template: `{ enable_thinking: false }`.
   * @help variables of the chat template, such as enable_thinking=false
   */
  readonly chatTemplateArgs?: Readonly<Record<string, unknown>> | undefined
  /** How the model writes calls. Default: the form that the chat template shows or names, else Hermes'. */
  readonly toolForm?: ToolForm | undefined
  /**
   * The prompts of chats do not describe the functions that the model may call: the adapter learns to know them, which
   * saves their tokens in each request. Its chat template keeps the list, and sessions and servers check tools against
   * it. Default false.
   */
  readonly toolsInAdapter?: boolean | undefined
  /**
   * Reads a file of a picture: its path, or its bytes. Default: in Node by sharp, if it is installed; in browsers what
   * the browser can show. Records may also hold pictures as `{ data, width, height }`.
   */
  readonly decodeImage?: DecodeImage | undefined
  /**
   * Whose defaults count where the options and `config` say nothing. `peft`: those of PEFT's LoraConfig and of
   * transformers' TrainingArguments, such as rank 8, alpha 8, a learning rate of 5e-5 and 3 epochs. Default: lowrank's
   * own.
   */
  readonly preset?: Preset | undefined
  /**
   * Tokens whose rows of the embedding are trained too, as PEFT's trainable_token_indices: `['<tool>', 32000]`, or by
   * module, `{ embed_tokens: ['<tool>'], lm_head: ['<tool>'] }`. An output layer that is tied to the embedding uses
   * the same rows. All tokens must have rows in the graph already. Default: none.
   * @help tokens whose rows of the embedding are trained too, such as special tokens: texts, or ids, such as
   * "<tool>,32000"
   */
  readonly trainedTokens?: TrainedTokens | undefined
  /**
   * Adapts only the last layers of the model, this many, as PEFT's layers_to_transform: an adapter that trains faster
   * and is smaller. Default: all.
   * @range an integer of at least 1
   * @help adapts only the last N layers of the model. Default: all
   */
  readonly numLayers?: number | undefined
  /**
   * Settings of the new adapter. Some have their own defaults here: rank 8, alpha 16, no dropout, targetModules
   * `all-linear`, init `kaiming-uniform` and seed 42.
   */
  readonly config?: LoraConfigInput | undefined
  /** Module name → name of its node or its weight, for graphs that do not name their modules. */
  readonly modules?: ModuleMap | undefined
  /** Continues the unfinished run in `out`. The result is the same as without the stop. */
  readonly resume?: boolean | undefined
  /**
   * Keeps the state of the run when it is done, so that `resume` with more steps makes it longer. With a constant
   * schedule the weights are those of one long run; other schedules end with the first part, and a warning says so.
   */
  readonly keepState?: boolean | undefined
  /** Replaces the run in `out`. */
  readonly overwrite?: boolean | undefined
  /**
   * Ends the run after the current step, or at once in an evaluation. The run is saved and reported as interrupted; a
   * resumed run makes up for the evaluation. If the run stops before its first step, the old run in `out` stays.
   */
  readonly signal?: SignalLike | undefined
  /**
   * Prompts that the model answers before training, at each evaluation and at the end, with the most likely tokens, up
   * to 40. If the records are chats, each prompt is a question. The weights that are trained are used, and do not
   * change. For tasks that continue texts.
   */
  readonly sample?: readonly string[] | undefined
  /**
   * Functions that are called while the run makes progress. Default: lines on standard error if that is a terminal,
   * else nothing. `{}` is silent.
   */
  readonly on?: TrainEvents | undefined
}

interface OpenParts {
  readonly teacher?: Model | TeacherServer | undefined
  readonly rewards?: readonly Reward[] | undefined
  readonly model: Model
  readonly data: TrainingData
  readonly evalData?: TrainingData | undefined
  readonly adapter?: LoraAdapter | undefined
  readonly out?: Directory | undefined
}

/** The input of a run: checked options, with the model and the files open. */
export interface TrainInput extends Omit<TrainOptions, keyof OpenParts | 'dtype'>, OpenParts {}

/** Result of a run. */
export interface TrainResult {
  /** The trained adapter. If the options contained an adapter, it is the same object. */
  readonly adapter: LoraAdapter
  /** Losses, times and sizes. */
  readonly report: TrainReport
}
