// The options and results of a trainer.

import type { Source } from '../../core/base/bytes.js'
import type { GenerateOptions, GenerateResult } from '../../run/session.js'
import type { TrainOptions } from '../options.js'
import type { TokenExample } from './examples.js'
import type { LossFunction, LossName, LossOptions } from './losses.js'

/** Options of {@link openTrainer}: those of {@link TrainOptions} that are not about data, files or a schedule. */
export interface TrainerOptions
  extends Pick<
    TrainOptions,
    | 'dtype'
    | 'adapter'
    | 'config'
    | 'modules'
    | 'numLayers'
    | 'trainedTokens'
    | 'chatTemplate'
    | 'chatTemplateArgs'
    | 'termsRead'
    | 'maxLength'
    | 'batchSize'
    | 'weightDecay'
    | 'loraPlusRatio'
    | 'maxGradNorm'
    | 'device'
    | 'threads'
    | 'memory'
  > {
  /** Losses also get the entropy of each token. A step takes a little longer. Default false. */
  readonly entropy?: boolean | undefined
  /** Goes on from a state that `saveState` wrote, with equal bytes. The other options must be those of that trainer. */
  readonly resume?: Source | undefined
}

/** Options of `forwardBackward`. */
export interface ForwardBackwardOptions extends LossOptions {
  /** A loss by name, or a function. A function needs a second pass through the model. Default: `cross-entropy`. */
  readonly loss?: LossName | LossFunction | undefined
  /**
   * Logits are divided by this, as `sample` does with its `temperature`.
   * @range a finite number above 0
   * @default 1
   */
  readonly temperature?: number | undefined
  /** Compares the derivatives of a loss function with central differences, and throws if they differ. Default false. */
  readonly check?: boolean | undefined
}

/** Result of `forwardBackward`. */
export interface ForwardBackwardResult {
  /** The loss before the step. */
  readonly loss: number
  /** For each example ln(probability) of each token, (n); 0 for tokens that are not targets. */
  readonly logprobs: Float32Array[]
  readonly metrics: Readonly<Record<string, number>>
}

/** Options of `step`. */
export interface StepOptions {
  /**
   * The learning rate of AdamW in this step.
   * @range a number in [0, 10]
   */
  readonly learningRate: number
}

/** Result of `step`. */
export interface StepReport {
  /** The number of the step, from 1. */
  readonly step: number
  /** The norm of all gradients since the last step, before clipping. */
  readonly gradientNorm: number
}

/** Options of `save` and `saveState`. */
export interface TrainerSaveOptions {
  /**
   * Replaces an adapter that this process did not write.
   * @default false
   */
  readonly overwrite?: boolean | undefined
}

/** Options of `sample`: those of a session's `generate`. The default temperature is 1. */
export interface SampleOptions extends Omit<GenerateOptions, 'adapter' | 'logprobs' | 'images' | 'on' | 'cacheScope'> {
  /**
   * Texts for each prompt.
   * @range an integer of at least 1
   * @default 1
   */
  readonly n?: number | undefined
}

/** A sampled text. It is an example already: give it to `forwardBackward` with `advantages`. */
export interface Sample extends TokenExample, Pick<GenerateResult, 'text' | 'finish' | 'seed'> {
  /** Prompt and text, with the token that ended it, (n). */
  readonly ids: Int32Array
  /** 1 for the tokens that were sampled, 0 for the prompt, (n). */
  readonly weights: Float32Array
  /** ln(probability) at the temperature of the call, before top-p and top-k; 0 for the prompt, (n). */
  readonly logprobs: Float32Array
  /** Tokens of the prompt. */
  readonly promptTokens: number
}
