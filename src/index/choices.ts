// The words that some options of train take: what a form or a command line offers.

import { BIASES } from '../lora/config.js'
import { DRAWN_INITS } from '../lora/init/inits.js'
import { TASK_NAMES } from '../tasks/tasks.js'
import { SCHEDULES } from '../train/schedule.js'
import { KEEPS, PRESETS } from '../train/settings.js'

/** The words that options of `train` take, by option: tasks, schedules, starts that need no data, trained biases, weights to keep, and presets. */
export const TRAIN_CHOICES = Object.freeze({
  task: TASK_NAMES,
  schedule: SCHEDULES,
  init: DRAWN_INITS,
  bias: BIASES,
  keep: KEEPS,
  preset: PRESETS,
})
