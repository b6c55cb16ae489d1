// The noun of a training: a run, from its start to its report. What it needs of its platform, and what a step learns
// from, are here too.

import type { DataError } from '../core/base/errors.js'
import type { LoraAdapter } from '../lora/adapter.js'
import type { LoraConfig } from '../lora/config.js'
import type { DtypeChoice } from '../model/graph-file.js'
import type { MemoryLimit } from '../model/memory.js'
import type { ExampleFile } from '../model/text/example-store.js'
import type { SessionParts } from './engine/sessions.js'
import type { Learner } from './learner.js'
import type { TrainInput, TrainOptions } from './options.js'
import type { EvaluationEvent, MemoryUse, RewardMetrics, SampleEvent, StepMetrics, TrainEvents } from './report.js'
import type { EncodedSource } from './rows/examples.js'
import type { DataFacts } from './rows/facts.js'
import type { RunReport } from './saved/history.js'
import type { RunPlace } from './saved/run-folder.js'
import type { PictureEncoder } from './tasks/pictures/encoder.js'
import type { EncodeContext, Encoded, Examples, Task } from './tasks/task.js'
import type { embedForGuide } from './tasks/vectors/guide.js'

/** The names in files and on hubs of what a run reads. */
export interface RunSources {
  readonly model: string
  readonly dtype?: DtypeChoice | undefined
  readonly data: string | readonly string[]
  readonly evalData?: string | readonly string[] | undefined
  readonly teacher?: TrainOptions['teacher']
  readonly rewards?: TrainOptions['rewards']
  readonly graderModels?: TrainOptions['graderModels']
}

/** What surrounds a run: its platform, and who asks for it. */
export interface RunContext {
  readonly limits?: readonly MemoryLimit[]
  /** Opens a file that stands in for memory, once. */
  readonly exampleFile?: (() => ExampleFile) | undefined
  /** Memory of the process, where the system tells it. */
  readonly memoryUse?: (() => MemoryUse | undefined) | undefined
  readonly sources?: RunSources | undefined
  /** Makes the page of a finished run. */
  readonly page?: ((run: Run, report: RunReport, steps: readonly StepMetrics[]) => Promise<string>) | undefined
  /** Gives the vectors of the guide to a task whose loss has one. */
  readonly embedForGuide?: typeof embedForGuide | undefined
  /** Returns what the next step has to wait for, or undefined if it need not wait. */
  readonly wait?: (() => Promise<void> | undefined) | undefined
  /** Hears of each row: as the task parsed it, as it was encoded, and for which data. */
  readonly onRow?: ((row: unknown, encoded: Encoded<unknown>, isEvaluation: boolean) => void) | undefined
  /** Takes every record that cannot be used. Default: as `skipInvalid` says. */
  readonly onInvalid?: ((error: DataError) => void) | undefined
  readonly pictures?: PictureEncoder | undefined
  /** True if the run trains elsewhere, so that this runtime need not know the model's operators. */
  readonly isElsewhere?: boolean
  /** A task that is in no table: that of a loop which brings its own examples, so that no data are read. */
  readonly task?: Task
}

/** A run before its first step: all that its options, its model and its data come to. */
export interface Run extends SessionParts {
  /** As given, with the task, and with the graphs of the model joined. */
  readonly options: TrainInput
  readonly around: RunContext
  readonly task: Task
  /** The config that was asked for; that of the adapter also has what follows from the model. */
  readonly config: LoraConfig
  readonly copiedBytes: number
  readonly longest: number
  readonly on: TrainEvents
  readonly encoding: EncodeContext
  readonly records: Omit<EncodedSource, 'heldOut'>
  readonly examples: Examples<unknown>
  /** {@link OpenTask.cost} of each example. */
  readonly costs: Int32Array
  readonly evalExamples: Examples<unknown> | undefined
  /** What the report says besides, such as that there are too few records to tell something. */
  readonly doubts: readonly string[]
  /** The loop replaces a new adapter if a part of its change does better. */
  adapter: LoraAdapter
  readonly facts: DataFacts
  readonly place: RunPlace | undefined
}

/** The source of a run's steps, such as records or texts with rewards. */
export interface Lessons {
  readonly stepsPerEpoch: number
  readonly totalSteps: number
  /** Adds the gradients of a step, counted from 0, to the learner. `tokens` and `examples`: how many it had. */
  forwardBackward(
    step: number,
  ): Promise<{ loss: number; tokens: number; examples: number; rewards?: RewardMetrics | undefined }>
  /** Runs before the first step, such as the scores of a reference. */
  before?(): Promise<void>
  /** Evaluates, perhaps other values of the factors. Returns undefined if the signal ends it. */
  evaluate?(factors?: readonly Float32Array[]): Promise<Omit<EvaluationEvent, 'step'> | undefined>
  /** Returns answers for people to read, or undefined if there are none. */
  sample?(): Promise<SampleEvent['samples'] | undefined>
  /** Returns false between steps that belong together: the run is neither saved nor stopped there. */
  isWhole?(steps: number): boolean
  /**
   * True if the state is saved even when `forwardBackward` throws. Set if that calls functions of the user, such as
   * rewards, which may work again later.
   */
  readonly savesOnError?: boolean
  close?(): Promise<void>
}

/** A task that does not learn from the texts of its records alone makes its lessons itself. */
export interface TeachingTask<Row = unknown, Example = unknown, Options extends object = Record<string, unknown>>
  extends Task<Row, Example, Options> {
  lessons(run: Run, learner: Learner): Promise<Lessons>
}
