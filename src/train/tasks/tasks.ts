// The table of tasks. A task's file loads when the task is first used.

import { attempt, ConfigError, didYouMean } from '../../core/base/errors.js'
import type { Model } from '../../model/model-folder.js'
import type { Task } from './task.js'

const LOADERS = {
  'causal-lm': async () => (await import('./causal-lm.js')).causalLm,
  dpo: async () => (await import('./dpo.js')).dpo,
  embedding: async () => (await import('./embedding.js')).embedding,
  'image-classification': async () => (await import('./image-classification.js')).imageClassification,
  kto: async () => (await import('./kto.js')).kto,
  seq2seq: async () => (await import('./seq2seq.js')).seq2seq,
  'text-classification': async () => (await import('./text-classification.js')).textClassification,
  'token-classification': async () => (await import('./token-classification.js')).tokenClassification,
}

export type TaskName = keyof typeof LOADERS

/** Training in which the model writes the texts that it learns from. */
const LOOP_NAMES = ['grpo', 'distill'] as const
export type LoopName = (typeof LOOP_NAMES)[number]

export function isLoopName(name: string | undefined): name is LoopName {
  return LOOP_NAMES.includes(name as LoopName)
}

export const TASK_NAMES = Object.keys(LOADERS) as readonly TaskName[]

export async function loadTask(name: string): Promise<Task> {
  checkTaskName(name)
  return (await LOADERS[name]()) as unknown as Task
}

const allTasks = () => Promise.all(TASK_NAMES.map(loadTask))

/** Finds the first task with this task_type of PEFT. */
export async function taskOfType(taskType: string): Promise<Task | undefined> {
  return (await allTasks()).find(({ peftType }) => peftType === taskType)
}

export async function tasksFor(model?: Model): Promise<Task[]> {
  const tasks = await allTasks()
  return model === undefined ? tasks : tasks.filter((task) => canTrain(task, model))
}

export function canTrain(task: Task, model: Model): boolean {
  return attempt(() => task.check(model)).problems.length === 0
}

/** Throws ConfigError for a name that `train` does not know. */
export function checkTrainedTask(name: string): void {
  if (!isLoopName(name)) checkTaskName(name, [...TASK_NAMES, ...LOOP_NAMES])
}

function checkTaskName(name: string, names: readonly string[] = TASK_NAMES): asserts name is TaskName {
  if (Object.hasOwn(LOADERS, name)) return
  throw new ConfigError({
    where: 'task',
    what: 'unknown',
    expected: names.join(', '),
    got: JSON.stringify(name),
    hint: didYouMean(name, names),
  })
}
