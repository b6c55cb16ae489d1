// Words and defaults of options, by verb: what a form or a command line offers.

import { ADAPTER_FORMATS } from '../exchange/formats.js'
import { GENERATE_DEFAULTS } from '../infer/generate/sampling.js'
import { BIASES } from '../lora/config.js'
import { DRAWN_INITS } from '../lora/init/inits.js'
import { TASK_NAMES } from '../tasks/tasks.js'
import { KEEPS, PRESETS, SCHEDULES, TRAIN_DEFAULTS } from '../train/settings.js'

/**
 * The words that options take, by verb and option.
 *
 * - `train`: tasks, schedules, starts that need no data, trained biases, weights to keep, and presets
 * - `convertAdapter`: formats of adapters
 *
 * @example
 * for (const format of CHOICES.convertAdapter.to) console.log(format) // peft, gguf, mlx, onnx-adapter
 */
export const CHOICES = Object.freeze({
  train: Object.freeze({
    task: TASK_NAMES,
    schedule: SCHEDULES,
    init: DRAWN_INITS,
    bias: BIASES,
    keep: KEEPS,
    preset: PRESETS,
  }),
  convertAdapter: Object.freeze({ to: ADAPTER_FORMATS }),
})

/** The options of `train` and `generate` that are used where none are given, by verb. */
export const DEFAULTS = Object.freeze({ train: TRAIN_DEFAULTS, generate: GENERATE_DEFAULTS })
