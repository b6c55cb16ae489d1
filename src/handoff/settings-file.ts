// A run's settings under the names of transformers and TRL. All are written out, because the defaults there differ.

import type { GrpoOptions } from '../loop/grpo-loss.js'
import type { LoraAdapter } from '../lora/adapter.js'
import type { LoraConfig } from '../lora/config.js'
import type { TaskName } from '../tasks/tasks.js'
import { ADAMW } from '../train/optimizer.js'
import { type TrainSettings, usesBest, warmupStepsOf } from '../train/settings.js'
import type { HandedReward } from './rewards.js'

export interface HandedRun {
  readonly task: TaskName | 'grpo'
  readonly rewards: readonly HandedReward[] | undefined
  readonly chatTemplateArgs: Readonly<Record<string, unknown>> | undefined
  readonly taskOptions: Readonly<Record<string, unknown>>
  readonly settings: TrainSettings
  readonly config: LoraConfig
  readonly peft: Readonly<Record<string, unknown>>
  readonly base: string
  readonly totalSteps: number
  /** True if the order of the records stays fixed: there is a single pass, or the task keeps the order of the data. */
  readonly isInOrder: boolean
  /** The most tokens of a record; Infinity without a limit. */
  readonly maxLength: number
  readonly hasEvaluation: boolean
  readonly hasTemplate: boolean
  readonly isReadable: boolean
}

/** The parts of a handed-off run that differ between runs on records and runs from rewards. */
export interface HandedParts
  extends Pick<HandedRun, 'task' | 'taskOptions' | 'rewards' | 'settings'>,
    Pick<HandedRun, 'totalSteps' | 'isInOrder' | 'maxLength' | 'isReadable'> {
  readonly command: string
  readonly adapter: LoraAdapter
  readonly template: string | undefined
  /** Lines of the file with the rows. */
  train(): Iterable<Uint8Array>
  readonly evaluation: (() => Iterable<Uint8Array>) | undefined
  readonly rows: number
  readonly evalRows: number
  /** Sentences about what this kind of run does otherwise in TRL. */
  readonly differences: readonly string[]
}

function trainingArguments(run: HandedRun): Record<string, unknown> {
  const { settings, config, totalSteps, isInOrder, hasEvaluation } = run
  const { evalEvery, saveEvery, bestMetric } = settings
  const keepsBest = usesBest(settings) && settings.keep === 'best'
  const every = evalEvery === undefined ? { strategy: 'epoch' } : { strategy: 'steps', steps: evalEvery }
  const saves = keepsBest
    ? every
    : saveEvery === undefined
      ? { strategy: 'epoch' }
      : { strategy: 'steps', steps: saveEvery }
  return {
    output_dir: 'out',
    ...(settings.maxSteps === undefined ? { num_train_epochs: settings.epochs } : { max_steps: totalSteps }),
    per_device_train_batch_size: settings.batchSize,
    per_device_eval_batch_size: settings.batchSize,
    gradient_accumulation_steps: settings.gradientAccumulation,
    learning_rate: settings.learningRate,
    lr_scheduler_type: settings.schedule,
    warmup_steps: warmupStepsOf(settings, totalSteps),
    optim: 'adamw_torch',
    weight_decay: settings.weightDecay,
    adam_beta1: ADAMW.beta1,
    adam_beta2: ADAMW.beta2,
    adam_epsilon: ADAMW.epsilon,
    max_grad_norm: settings.maxGradNorm,
    // The rows are written in the order in which this run would have read them.
    train_sampling_strategy: isInOrder ? 'sequential' : 'random',
    dataloader_drop_last: false,
    seed: Math.abs(config.seed) % 2 ** 32,
    bf16: true,
    fp16: false,
    gradient_checkpointing: settings.memory === 'low',
    logging_steps: 1,
    report_to: 'none',
    eval_strategy: hasEvaluation ? every.strategy : 'no',
    ...(hasEvaluation && { eval_on_start: true }),
    ...(hasEvaluation && evalEvery !== undefined && { eval_steps: evalEvery }),
    save_strategy: saves.strategy,
    ...('steps' in saves && { save_steps: saves.steps }),
    load_best_model_at_end: keepsBest,
    ...(keepsBest && { metric_for_best_model: bestMetric === 'loss' ? 'eval_loss' : `eval_${bestMetric}` }),
  }
}

/** A batch has whole groups, as in lowrank, where batchSize counts prompts. */
function rewardSettings(run: HandedRun): Record<string, unknown> {
  const { taskOptions, rewards = [], settings, chatTemplateArgs, isInOrder } = run
  const options = taskOptions as GrpoOptions
  const { numGenerations = 8, beta = 0, epsilon = 0.2, epsilonHigh = epsilon, topP = 1 } = options
  // GRPOTrainer has an order of its own, and no records to evaluate.
  const { train_sampling_strategy: _, ...args } = trainingArguments(run)
  return {
    ...args,
    per_device_train_batch_size: settings.batchSize * numGenerations,
    ...{ num_generations: numGenerations, beta, epsilon, epsilon_high: epsilonHigh },
    loss_type: options.lossType ?? 'dapo',
    scale_rewards: options.scaleRewards ?? 'group',
    num_iterations: options.numIterations ?? 1,
    mask_truncated_completions: options.maskTruncatedCompletions ?? false,
    max_completion_length: options.maxCompletionLength ?? 512,
    ...{ temperature: options.temperature ?? 1, top_p: topP, top_k: 0 },
    reward_weights: rewards.map(({ weight }) => weight),
    shuffle_dataset: !isInOrder,
    ...(chatTemplateArgs && { chat_template_kwargs: chatTemplateArgs }),
  }
}

export function trlSettings(run: HandedRun): Record<string, unknown> {
  const { task, taskOptions, settings, peft, maxLength, isReadable, hasTemplate } = run
  const length = Number.isFinite(maxLength) ? maxLength : null
  const preferences = {
    beta: taskOptions.beta ?? 0.1,
    disable_dropout: run.config.dropout === 0,
    precompute_ref_log_probs: false,
  }
  const methodSettings =
    task === 'kto'
      ? {
          loss_type: 'kto',
          desirable_weight: taskOptions.desirableWeight ?? 1,
          undesirable_weight: taskOptions.undesirableWeight ?? 1,
          ...preferences,
        }
      : task === 'dpo'
        ? {
            truncation_mode: 'keep_start',
            loss_type: ['sigmoid'],
            label_smoothing: taskOptions.labelSmoothing ?? 0,
            ...preferences,
          }
        : {
            truncation_mode: 'keep_start',
            packing: settings.packing,
            ...(settings.packing && { packing_strategy: 'bfd' }),
            shuffle_dataset: false,
            loss_type: 'nll',
            completion_only_loss: null,
            assistant_only_loss: isReadable && hasTemplate,
            ...(isReadable && hasTemplate && { chat_template_path: 'chat_template.jinja' }),
          }
  return {
    ...(task === 'grpo' ? rewardSettings(run) : { ...trainingArguments(run), max_length: length, ...methodSettings }),
    dataset_name: 'data',
    model_name_or_path: run.base,
    model_revision: run.config.peftFields.revision ?? 'main',
    dtype: 'float32',
    load_in_4bit: false,
    use_peft: true,
    lora_task_type: peft.task_type,
    lora_r: peft.r,
    lora_alpha: peft.lora_alpha,
    lora_dropout: peft.lora_dropout,
    lora_target_modules: peft.target_modules,
    ...(peft.modules_to_save !== null && { lora_modules_to_save: peft.modules_to_save }),
    use_rslora: peft.use_rslora,
    use_dora: peft.use_dora,
  }
}

export function scriptOnly({ settings, peft, hasTemplate, rewards }: HandedRun, command: string): string[] {
  const isOff = (value: unknown) =>
    value === null ||
    value === undefined ||
    value === false ||
    (typeof value === 'object' && Object.keys(value).length === 0)
  const fields = ['rank_pattern', 'alpha_pattern', 'exclude_modules', 'layers_to_transform', 'trainable_token_indices']
  return [
    ...((settings.loraPlusRatio ?? 1) === 1 ? [] : [`LoRA+ (B learns ${settings.loraPlusRatio} times as fast)`]),
    ...(rewards === undefined ? [] : ['the rewards']),
    // The command `trl sft` has a setting for the chat template.
    ...(hasTemplate && command !== 'sft' ? ['the chat template'] : []),
    ...(settings.earlyStopping === undefined ? [] : ['early stopping']),
    ...fields.filter((field) => !isOff(peft[field])),
    ...(peft.bias === 'none' ? [] : ['trained biases']),
    ...(peft.init_lora_weights === true ? [] : ['init_lora_weights']),
  ]
}
