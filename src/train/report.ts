// The words of a training run: events while it goes on, and a report at its end.

/** One line of metrics.jsonl. */
export interface StepMetrics {
  /** Counts from 1. */
  step: number
  /** Counts from 0. */
  epoch: number
  /** Nats per target token, before the update. */
  loss: number
  /** The rate of this step's update. */
  learningRate: number
  /** Before clipping. */
  gradientNorm: number
  /** Tokens of the step, padding aside. */
  tokens: number
  /** Milliseconds of the whole step, without evaluations. */
  elapsedMs: number
  /** Loss of the evaluation after this step, if there was one. */
  evalLoss?: number
  /** The rewards of the step's texts, in runs that learn from rewards. */
  rewards?: RewardMetrics
}

/** The texts of a step that learns from rewards. Shares are between 0 and 1. */
export interface RewardMetrics {
  /** Mean of the weighted sums of all rewards. */
  readonly reward: number
  /** Mean of the groups' deviations. */
  readonly deviation: number
  /** Mean of each reward, by the name of its function. */
  readonly byFunction: Readonly<Record<string, number>>
  /** Mean number of tokens that the model wrote for a text. */
  readonly length: number
  /** Share of texts that reached the largest length. */
  readonly cut: number
  /** Share of groups whose texts all have one reward, so that nothing is learned from them. */
  readonly withoutSignal: number
  /** Share of texts that differ from each other. */
  readonly distinct: number
  /** The first prompt of the step. */
  readonly prompts: readonly string[]
  /** Share of tokens whose ratio is clipped. */
  readonly clipped?: number
  /** Mean divergence from the model before training, with a beta. */
  readonly kl?: number
}

/** One optimizer step that was made. */
export interface StepEvent extends StepMetrics {
  /** Number of steps of the whole run, including the steps before a resume. */
  totalSteps: number
  /** Tokens per second since this process started, without padding and without evaluations. */
  tokensPerSecond: number
  /** Examples per second, such as pictures, counted as the tokens are. A packed row is one example. */
  examplesPerSecond: number
  /** From the median of the last steps; without evaluations. */
  secondsLeft: number
}

/** The loss over all evaluation records. */
export interface EvaluationEvent {
  /** Optimizer steps done: 0 before the first. */
  step: number
  /** Mean loss over all evaluation records. For texts: in nats per target token. */
  loss: number
  /** Other metrics of the task, by name: perplexity, accuracy, … */
  metrics: Record<string, number>
  /** The part of the change that was evaluated, if not all of it. */
  strength?: number
}

export type Evaluation = Readonly<EvaluationEvent>

/** Answers to the prompts of a run. */
export interface SampleEvent {
  /** Optimizer steps done: 0 before the first. */
  step: number
  samples: { readonly prompt: string; readonly text: string }[]
}

/** The stages of a run. */
export type TrainStage = 'encode' | 'prepare' | 'evaluate' | 'train' | 'save'

/** How far a stage is. */
export interface ProgressEvent {
  stage: 'prepare' | 'evaluate'
  /** Number of finished parts, of `total`. */
  done: number
  total: number
}

/** Callbacks. If one throws an error, the run stops. */
export interface TrainEvents {
  /** Called once the task is known: the one of the options, or the one that the first record fits. */
  task?(name: string): void
  /** Called when a stage begins. A stage can begin several times, such as `evaluate`. */
  stage?(stage: TrainStage): void
  /** Parts of a stage that are done: while the graph is built, and while it evaluates. */
  progress?(event: ProgressEvent): void
  /** After each optimizer step. */
  step?(event: StepEvent): void
  /** After each evaluation. */
  evaluation?(event: EvaluationEvent): void
  /** After each writing of the answers to the prompts of `sample`. */
  sample?(event: SampleEvent): void
  /** Called with a line about what lowrank chose itself, such as less memory at a little less speed. */
  note?(message: string): void
  /** Called once for each warning, such as records that were cut or skipped. */
  warning?(message: string): void
}

/** Memory of a process in bytes, in two parts. */
export interface MemoryUse {
  /** Memory that it made itself. */
  anonymous: number
  /** Mapped from files. */
  mapped: number
}

/** A run at its end, whether it is done or interrupted. */
export interface TrainReport {
  /** The task that was trained. */
  task: string
  /** Optimizer updates, with those before a resume. */
  steps: number
  /** Tokens of all steps, padding aside. */
  tokens: number
  /** Loss of each step before the update, in nats per target token. */
  trainLoss: number[]
  /** Mean reward of each step's texts, if the run learned from rewards. */
  rewards?: number[]
  /** Steps in which no text had a better reward than another of its group, if the run learned from rewards. */
  stepsWithoutSignal?: number
  /**
   * Reasons to doubt that the run has learned: no learning rate above 0, no signal, every B still zeros, a loss that
   * rose, or an evaluation that is not better than before. Empty if there are none, or if the run was interrupted.
   */
  warnings: string[]
  /** The step whose weights the adapter has: the last, or with `keep: 'best'` that of the best evaluation; may be 0. */
  keptStep: number
  /** The part of its change that a new adapter for search kept, because it does better: 1, 0.5 or 0.25 of alpha. */
  strength: number
  /** True if `earlyStopping` ended the run before its last step. */
  stoppedEarly: boolean
  /** Null without evaluation data, or when interrupted. `after` is of the weights that the adapter has. */
  evalLoss: { before: number; after: number } | null
  /**
   * Other metrics of the weights that the adapter has, by name: perplexity, accuracy, … Null if there was no
   * evaluation.
   */
  evalMetrics: Record<string, number> | null
  /** All evaluations, that before training first. `evaluations.jsonl` in the run's folder has them too. */
  evaluations: EvaluationEvent[]
  /** The answers to the prompts of `sample`: before training, at each evaluation and at the end. */
  samples: SampleEvent[]
  /** Training records longer than the limit, which lost their end. */
  truncatedRecords: number
  /** Training records without a target: left out. */
  skippedRecords: number
  /**
   * True if the head started as a new one: the model has none, or one for other labels, or the option `newHead` was
   * set. Null if the task trains no head, or the run trains an adapter further.
   */
  newHead: boolean | null
  /** Names of the labels, in the order of the logits. Null if the task has no labels. */
  labels: string[] | null
  /** Elements of all A and B: r·(d + k) each. */
  trainableParams: number
  /** Parameters of the adapted layers: d·k + r·(d + k) for each layer. */
  totalParams: number
  /** Duration of this process's part of the run, in seconds. */
  seconds: number
  /**
   * Median duration of a step in milliseconds, without the first two steps. Null if there are no more than two steps.
   */
  stepMillis: number | null
  /** Highest memory use of the process, in bytes. Null in a browser. */
  peakRssBytes: number | null
  /**
   * Most memory after a step, in bytes: what the process made itself, and what it mapped from files, such as weights,
   * which the system can take back. Null if the system does not tell.
   */
  memory: MemoryUse | null
  /** True if the signal ended the run before its last step, or before the evaluation that follows it. */
  interrupted: boolean
  /** Name and version of ONNX Runtime. */
  runtime: string
}
