// The settings of a training run, and their defaults.

import type { LoraConfigInput } from '../lora/config.js'
import { TRAIN_CONFIG_DEFAULTS } from '../lora/gen/options.js'
import { TRAIN_SETTINGS_DEFAULTS } from './gen/options.js'
import type { Task } from './tasks/task.js'

/** Which weights a run can end with. */
export type Keep = 'last' | 'best'

/** How a run trains: the settings that the engine gets, each with a value. */
export interface TrainSettings {
  /**
   * Passes over the data. With a part of a pass, the number of steps is rounded up, as in TRL. For vectors the default
   * is 5.
   * @range a finite number above 0
   * @help passes over the data; 0.5 is half a pass
   * @default 1
   */
  epochs: number
  /**
   * Number of steps of the optimizer, instead of `epochs`.
   * @range an integer of at least 1
   */
  maxSteps: number | undefined
  /**
   * Records in a batch.
   * @range an integer of at least 1
   * @default 8
   */
  batchSize: number
  /**
   * Batches in a step of the optimizer. For vectors the default makes steps of 64 pairs.
   * @range an integer of at least 1
   * @default 1
   */
  gradientAccumulation: number
  /**
   * Longer records are cut to this number of tokens. Default: the model's context. Evaluations of labels and vectors
   * read up to the context in any case, as `classify` and `embed` do.
   * @range an integer of at least 2
   */
  maxLength: number | undefined
  /**
   * Highest learning rate of the schedule. The default falls with the width of the model: 2e-3 at 576, 4e-4 at 2,048.
   * For labels it is one of the task's own, with LoRA+ 16, and for vectors 2e-4.
   * @range a number in (0, 10]
   */
  learningRate: number
  /**
   * How the learning rate changes during the run.
   * @default cosine
   */
  schedule: Schedule
  /**
   * Share of the steps, at the start, in which the learning rate rises from 0: then the first step has the rate 0, as
   * in transformers. Default: 3 %, in which it rises in equal parts, the first of them above 0.
   * @range a number in [0, 1]
   */
  warmupRatio: number | undefined
  /**
   * Number of steps, at the start, in which the learning rate rises from 0, instead of `warmupRatio`.
   * @range an integer of at least 0
   */
  warmupSteps: number | undefined
  /**
   * LoRA+ (Hayou et al. 2024, arXiv 2402.12354): the learning rate of B and of biases is that of all other tensors
   * times this number. Default: 1; 16 with the rates of labels.
   * @range a number in [1, 1000]
   */
  loraPlusRatio: number | undefined
  /**
   * AdamW's weight decay, decoupled from the gradient.
   * @range a number in [0, 1]
   * @default 0
   */
  weightDecay: number
  /**
   * If the global norm of the gradients is larger than this, they are scaled down to it. 0 turns this off.
   * @range a finite number of at least 0
   * @default 1
   */
  maxGradNorm: number
  /**
   * The devices that run the model, with ONNX Runtime's names: cpu, webgpu, cuda, coreml, dml, … You can give several.
   * If the first cannot compute an operator, the next one does. The optimizer always runs on the CPU. Default: the CPU.
   * @flag NAME,…
   */
  device: string | readonly string[] | undefined
  /**
   * Threads of the runtime. Default: its own choice. In browsers that is half of the processors, and at most 4.
   * @range an integer in [1, 1024]
   */
  threads: number | undefined
  /**
   * Memory or speed: ONNX Runtime can copy weights in an order that makes products faster. `fast` copies all of them.
   * `low` copies none, except quantized ones: it is slower by a few percent, and more for short batches of large
   * models. `auto` copies none if memory is short, and at most 225 MB for models above 256 MB.
   * @default auto
   */
  memory: 'auto' | 'low' | 'fast'
  /**
   * Starts with a new head, also where the model has one that fits, and takes the labels of the data alone. Otherwise a
   * head of the model is trained further if it gives the labels of the data.
   * @default false
   */
  newHead: boolean
  /**
   * Number of steps between two saves of adapter and state. Default: saves only at the end and when interrupted.
   * @range an integer of at least 1
   */
  saveEvery: number | undefined
  /**
   * Puts short records together into rows of `maxLength` tokens (512 without it). No record sees another.
   * @default false
   */
  packing: boolean
  /**
   * Number of steps between two evaluations. Needs `evalData` or `evalSplit`. Default: only before and after training,
   * and with `keep: 'best'` or `earlyStopping` also after each pass over the data.
   * @range an integer of at least 1
   */
  evalEvery: number | undefined
  /**
   * Whose weights the run ends with: those of the last step, or those of the best evaluation. If none is
   * better than the one before the first step, the adapter stays as it was before it. Runs for search with records to
   * evaluate keep the best by default, and take a half or a quarter of a new adapter's change if that does better.
   * @default last
   */
  keep: Keep
  /**
   * The measure that tells the best evaluation: `loss`, or a metric of the task, such as accuracy or mrr. Lower is
   * better for loss and perplexity, higher for all others. Of several with commas, each decides if those before it are
   * equal. In search the default is corpusRecall@10,corpusMrr: how often the document of a question is among the first
   * ten of all in the data, and the mean of 1 / its place.
   * @default loss
   * @flag NAME
   */
  bestMetric: string
  /**
   * Ends the run after this many evaluations in a row without a better one. Default: never.
   * @range an integer of at least 1
   */
  earlyStopping: number | undefined
}

const HIGHEST_RATE = 1e-2
const LOWEST_RATE = 1e-4

/** The learning rate here is the highest default: {@link withDefaultRate} chooses a lower one for wide layers. */
export const TRAIN_DEFAULTS = Object.freeze({
  ...TRAIN_SETTINGS_DEFAULTS,
  learningRate: HIGHEST_RATE,
  config: Object.freeze(TRAIN_CONFIG_DEFAULTS),
}) satisfies Readonly<TrainSettings> & { readonly config: LoraConfigInput }

/** Defaults of other programs, by the preset that takes them. */
export type Preset = 'peft'

/** PEFT 0.21.2 and transformers 5.24, written out, so that a change of lowrank's own defaults does not change them. */
const PEFT_DEFAULTS = Object.freeze({
  epochs: 3,
  batchSize: 8,
  gradientAccumulation: 1,
  learningRate: 5e-5,
  schedule: 'linear',
  warmupRatio: 0,
  weightDecay: 0,
  maxGradNorm: 1,
  config: Object.freeze({
    rank: 8,
    alpha: 8,
    dropout: 0,
    targetModules: 'default',
    init: 'kaiming-uniform',
    seed: 42,
    useRslora: false,
    useDora: false,
    bias: 'none',
  }),
}) satisfies Partial<TrainSettings> & { readonly config: LoraConfigInput }

export function defaultsOf(preset: Preset | undefined): Readonly<TrainSettings> & { readonly config: LoraConfigInput } {
  if (preset === undefined) return TRAIN_DEFAULTS
  return { ...TRAIN_DEFAULTS, ...PEFT_DEFAULTS, config: { ...TRAIN_DEFAULTS.config, ...PEFT_DEFAULTS.config } }
}

type SettingsInput = { readonly [K in keyof TrainSettings]?: TrainSettings[K] | undefined } & {
  readonly preset?: Preset | undefined
}

/**
 * The settings with the learning rate of the task or, where it has none, one that fits the widths of the layers: for
 * options and presets that say nothing. Weights of the base need a lower one than A and B.
 */
export function withDefaultRate(
  settings: TrainSettings,
  input: SettingsInput,
  {
    learningRate,
    loraPlusRatio: ratio = 16,
    rateShare = 1,
  }: Pick<Task, 'learningRate' | 'loraPlusRatio' | 'rateShare'>,
  { widths, trainsBase }: { widths: readonly number[]; trainsBase: boolean },
): TrainSettings {
  if (input.learningRate !== undefined || input.preset !== undefined) return settings
  const { loraPlusRatio } = settings
  if (learningRate !== undefined) return { ...settings, learningRate, loraPlusRatio: loraPlusRatio ?? ratio }
  const width = [...widths].sort((a, b) => a - b)[Math.floor(widths.length / 2)] ?? Number.POSITIVE_INFINITY
  const byWidth = Math.max(2e-3 * (576 / width) ** 1.25, LOWEST_RATE)
  const rate = Math.min(byWidth, trainsBase ? 1e-3 : HIGHEST_RATE) * (rateShare / (loraPlusRatio ?? 1))
  // Two digits are the same on all machines, and are what people read.
  return { ...settings, learningRate: Number(rate.toPrecision(2)) }
}

/** The settings of a task that chooses weights by a metric of its own, if the caller says nothing else. */
export function withBest(settings: TrainSettings, input: SettingsInput, metric: string | undefined): TrainSettings {
  if (metric === undefined || input.preset !== undefined) return settings
  const keep = input.keep ?? 'best'
  return { ...settings, keep, ...(usesBest({ ...settings, keep }) && { bestMetric: input.bestMetric ?? metric }) }
}

/** The settings with the passes and the size of a step that the task has of its own. Batches stay as large. */
export function withTaskDefaults(
  settings: TrainSettings,
  input: SettingsInput,
  { epochs = settings.epochs, stepSize }: Pick<Task, 'epochs' | 'stepSize'>,
): TrainSettings {
  if (input.preset !== undefined) return settings
  const batches = stepSize && Math.max(1, Math.round(stepSize / settings.batchSize))
  return {
    ...settings,
    epochs: input.epochs ?? epochs,
    gradientAccumulation: input.gradientAccumulation ?? batches ?? settings.gradientAccumulation,
  }
}

export function resolveSettings(input: SettingsInput): TrainSettings {
  const { config: _, ...defaults } = defaultsOf(input.preset)
  const entries = Object.entries(defaults).map(([key, value]) => [key, input[key as keyof TrainSettings] ?? value])
  return Object.fromEntries(entries)
}

export function usesBest({ keep, earlyStopping }: TrainSettings): boolean {
  return keep === 'best' || earlyStopping !== undefined
}

/** Ways in which the learning rate falls after the warm-up. */
export type Schedule = 'cosine' | 'linear' | 'constant'

type Warmup = 'warmupRatio' | 'warmupSteps'

const DEFAULT_WARMUP = 0.03

export function warmupStepsOf(
  { warmupRatio = DEFAULT_WARMUP, warmupSteps }: Pick<TrainSettings, Warmup>,
  totalSteps: number,
): number {
  // 10 / 150 · 150 is 10, but other ratios end a rounding error above the whole number they mean.
  return warmupSteps ?? Math.max(0, Math.ceil(warmupRatio * totalSteps - 1e-9))
}

/**
 * As in transformers: 0 at the first warm-up step, the peak at the step after the last one, and 0 after all steps. The
 * default warm-up begins above 0, because a short run has no other step.
 */
export function learningRates(
  { schedule, learningRate: peak, ...warmup }: Pick<TrainSettings, 'schedule' | 'learningRate' | Warmup>,
  totalSteps: number,
) {
  const warmupSteps = warmupStepsOf(warmup, totalSteps)
  const first = warmup.warmupRatio === undefined && warmup.warmupSteps === undefined ? 1 : 0
  return (step: number): number => {
    if (step < warmupSteps) return (peak * (step + first)) / (warmupSteps + first)
    const progress = (step - warmupSteps) / Math.max(1, totalSteps - warmupSteps)
    if (schedule === 'cosine') return peak * 0.5 * (1 + Math.cos(Math.PI * progress))
    return schedule === 'linear' ? peak * (1 - progress) : peak
  }
}
