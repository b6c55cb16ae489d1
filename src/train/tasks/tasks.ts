// The table of tasks. A task's file loads when the task is first used.

import { attempt, ConfigError, didYouMean } from '../../core/base/errors.js'
import type { Model } from '../../model/model-folder.js'
import type { Task, TaskInputs, TaskName } from './task.js'

const LOADERS = {
  'causal-lm': async () => (await import('./causal-lm.js')).causalLm,
  dpo: async () => (await import('./dpo.js')).dpo,
  embedding: async () => (await import('./embedding.js')).embedding,
  'image-classification': async () => (await import('./image-classification.js')).imageClassification,
  kto: async () => (await import('./kto.js')).kto,
  seq2seq: async () => (await import('./seq2seq.js')).seq2seq,
  'text-classification': async () => (await import('./text-classification.js')).textClassification,
  // After the task whose type of PEFT it shares.
  reranking: async () => (await import('./reranking.js')).reranking,
  'token-classification': async () => (await import('./token-classification.js')).tokenClassification,
  grpo: async () => (await import('./grpo.js')).grpo,
  distill: async () => (await import('./distill.js')).distill,
} satisfies Record<TaskName, () => Promise<object>>

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

export function checkTaskName(name: string): asserts name is TaskName {
  if (Object.hasOwn(LOADERS, name)) return
  throw new ConfigError({
    where: 'task',
    what: 'unknown',
    expected: TASK_NAMES.join(', '),
    got: JSON.stringify(name),
    hint: didYouMean(name, TASK_NAMES),
  })
}

/** Options of `train` that only few tasks take. */
const OF_FEW_TASKS = ['rewards', 'graderModels', 'onTurn', 'teacher']

/** Options that mean nothing if the texts that are learned come during the run. */
const OF_RECORDS = ['packing', 'sample', 'newHead', 'decodeImage']

/** Refuses options that the task would ignore, before anything is opened. */
export async function checkReadByTask(
  given: Pick<TaskInputs, 'taskOptions'> & { readonly task?: string | undefined },
): Promise<void> {
  const { task: name, taskOptions, ...options } = given
  const task = name === undefined ? undefined : await loadTask(name)
  for (const [option, value] of Object.entries(options)) {
    if (value === undefined || !OF_FEW_TASKS.includes(option)) continue
    const takes = ({ takes }: Task) => takes?.(taskOptions).includes(option)
    // Without a name, records choose the task, which never is one that writes texts.
    const possible = task === undefined ? (await allTasks()).filter(({ writesTexts }) => !writesTexts) : [task]
    if (possible.some(takes)) continue
    const owner = (await allTasks()).find(takes)
    throw new ConfigError({ where: option, what: `only with the task ${owner?.name}`, got: name ?? 'no task' })
  }
  if (!task?.writesTexts) return
  const ignored = OF_RECORDS.find((option) => options[option as keyof typeof options])
  if (ignored !== undefined) throw new ConfigError({ where: ignored, what: `not with the task ${name}` })
}
