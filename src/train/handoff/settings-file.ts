// A run's settings under the names of transformers and TRL. All are written out, because the defaults there differ.

import { isObject } from '../../core/base/options.js'
import type { LoraConfig } from '../../lora/config.js'
import { DRAWN_INITS } from '../../lora/init/inits.js'
import { ADAMW } from '../engine/optimizer.js'
import { type TrainSettings, usesBest, warmupStepsOf } from '../settings.js'
import type { TaskName } from '../tasks/task.js'

export interface HandedRun {
  readonly task: TaskName
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
    ...trainingArguments(run),
    max_length: length,
    ...methodSettings,
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

/** Parts of the run that TRL's commands have no option for, or read and do not use. */
export function withoutCounterpart({ task, taskOptions, settings, peft, config }: HandedRun): string[] {
  const isOff = (value: unknown) =>
    [null, undefined, false].includes(value as null) || (isObject(value) && Object.keys(value).length === 0)
  const fields = ['rank_pattern', 'alpha_pattern', 'exclude_modules', 'layers_to_transform', 'trainable_token_indices']
  return [
    ...((settings.loraPlusRatio ?? 1) === 1 ? [] : [`LoRA+ (B learns ${settings.loraPlusRatio} times as fast)`]),
    // The sigmoid loss of TRL 1.16 never reads label_smoothing.
    ...(task === 'dpo' && !isOff(taskOptions.labelSmoothing) && taskOptions.labelSmoothing !== 0
      ? ['labelSmoothing']
      : []),
    ...(settings.earlyStopping === undefined ? [] : ['early stopping']),
    ...fields.filter((field) => !isOff(peft[field])),
    ...(peft.bias === 'none' ? [] : ['trained biases']),
    ...((DRAWN_INITS as readonly string[]).includes(config.init) ? [] : [`the start values of init ${config.init}`]),
  ]
}
