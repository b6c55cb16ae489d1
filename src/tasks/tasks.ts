// The table of tasks: a line each. A task's file loads when it is first asked for.

import { ConfigError, LowrankError, nearMisses } from '../base/errors.js'
import type { Model } from '../graph/model-folder.js'
import type { Task } from './task.js'

const LOADERS = {
  'causal-lm': async () => (await import('./causal-lm.js')).causalLm,
  embedding: async () => (await import('./embedding.js')).embedding,
  'text-classification': async () => (await import('./text-classification.js')).textClassification,
  'token-classification': async () => (await import('./token-classification.js')).tokenClassification,
}

/** What a model can be trained for. */
export type TaskName = keyof typeof LOADERS

export const TASK_NAMES = Object.keys(LOADERS) as readonly TaskName[]

/** What is trained where nothing else is asked for. */
export const DEFAULT_TASK: TaskName = 'causal-lm'

/** @throws ConfigError for a name that no task has */
export async function loadTask(name: string): Promise<Task> {
  checkTaskName(name)
  return (await LOADERS[name]()) as unknown as Task
}

/** The task that a PEFT task_type means; undefined where it means none that is known. */
export async function loadTaskOfType(type: string | undefined): Promise<Task | undefined> {
  if (type === undefined) return undefined
  for (const name of TASK_NAMES) {
    const task = await loadTask(name)
    if (task.peftType === type) return task
  }
  return undefined
}

/** The tasks that a model can be trained for. */
export async function tasksFor(model: Model): Promise<TaskName[]> {
  const able: TaskName[] = []
  for (const name of TASK_NAMES) {
    try {
      ;(await LOADERS[name]()).check(model)
      able.push(name)
    } catch (error) {
      if (!(error instanceof LowrankError)) throw error
    }
  }
  return able
}

/** @throws ConfigError for a name that no task has */
export function checkTaskName(name: string): asserts name is TaskName {
  if (Object.hasOwn(LOADERS, name)) return
  const near = nearMisses(name, TASK_NAMES)
  throw new ConfigError({
    where: 'task',
    what: 'unknown',
    expected: TASK_NAMES.join(', '),
    got: JSON.stringify(name),
    ...(near.length > 0 && { hint: `Did you mean ${near[0]}?` }),
  })
}
