// The table of tasks: a line each.

import { ConfigError, nearMisses } from '../base/errors.js'
import { causalLm } from './causal-lm.js'
import type { Task } from './task.js'

/** By name. */
export const TASKS = {
  'causal-lm': causalLm,
} satisfies Record<string, unknown>

/** What a model can be trained for. */
export type TaskName = keyof typeof TASKS

/** What is trained where nothing else is asked for. */
export const DEFAULT_TASK: TaskName = 'causal-lm'

/** Throws ConfigError for a name that no task has. */
export function taskOf(name: string): Task {
  if (Object.hasOwn(TASKS, name)) return TASKS[name as TaskName] as Task
  const near = nearMisses(name, Object.keys(TASKS))
  throw new ConfigError({
    where: 'task',
    what: 'unknown',
    expected: Object.keys(TASKS).join(', '),
    got: JSON.stringify(name),
    ...(near.length > 0 && { hint: `Did you mean ${near[0]}?` }),
  })
}
