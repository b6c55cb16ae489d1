// The table of tasks: a line each. A task's file loads when it is first asked for.

import { ConfigError, LowrankError, nearMisses } from '../base/errors.js'
import { isObject } from '../base/options.js'
import type { Model } from '../graph/model-folder.js'
import type { HeadBase } from './heads/heads.js'
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

/** The name of a task. */
export type TaskName = keyof typeof LOADERS

export const TASK_NAMES = Object.keys(LOADERS) as readonly TaskName[]

/**
 * The task of a model where the caller names none: the first one that claims the model, else the first of the table.
 */
export async function defaultTask(model: Pick<Model, 'graphs' | 'onnx'>): Promise<TaskName> {
  for (const name of TASK_NAMES) if ((await loadTask(name)).isDefault?.(model)) return name
  return TASK_NAMES[0]
}

/**
 * The tasks whose records have the fields of a row, by the samples of each task: those with the most fields first, and
 * of equal ones the default first.
 */
async function tasksOfRow(row: unknown, first: TaskName): Promise<Task[]> {
  if (!isObject(row)) return []
  const has = ([field, value]: [string, unknown]) =>
    row[field] !== undefined && row[field] !== null && (typeof value !== 'boolean' || isTruth(row[field]))
  const fitting: { task: Task; fields: number }[] = []
  for (const name of new Set([first, ...TASK_NAMES])) {
    const task = await loadTask(name)
    const found = task.records.map(Object.entries).filter((fields) => fields.every(has))
    if (found.length > 0) fitting.push({ task, fields: Math.max(...found.map(({ length }) => length)) })
  }
  return fitting.sort((a, b) => b.fields - a.fields).map(({ task }) => task)
}

/** True for a truth value, also as a file of CSV has it. */
export function isTruth(value: unknown): boolean {
  return typeof value === 'boolean' || (typeof value === 'string' && /^(true|false)$/i.test(value))
}

/** A note about the field that labels a row, where the task does not learn it. */
export function droppedLabelNote({ name, records }: Pick<Task, 'name' | 'records'>, row: unknown): string[] {
  const fields = ['label', 'labels']
  if (!isObject(row) || records.some((record) => fields.some((field) => Object.hasOwn(record, field)))) return []
  const field = fields.find((one) => row[one] !== undefined && row[one] !== null)
  return field === undefined ? [] : [`have a field "${field}", which the task ${name} does not learn`]
}

/** The task of a row for which no task is named: by its fields, if the model can be trained for it. */
export async function taskOfRow(row: unknown, model: Model | undefined): Promise<Task> {
  const own = model === undefined ? TASK_NAMES[0] : await defaultTask(model)
  for (const task of await tasksOfRow(row, own)) if (model === undefined || canTrain(task, model)) return task
  return loadTask(own)
}

/** @throws ConfigError for a name that no task has */
export async function loadTask(name: string): Promise<Task> {
  checkTaskName(name)
  return (await LOADERS[name]()) as unknown as Task
}

/**
 * The task whose head an adapter has: by PEFT's task_type, or where it tells none by the model. Undefined where none is
 * known.
 */
export async function loadTaskOf(
  { taskType }: { taskType?: string | undefined },
  base: HeadBase,
): Promise<Task | undefined> {
  for (const name of TASK_NAMES) {
    const task = await loadTask(name)
    if (task.peftType !== taskType) continue
    if (taskType !== undefined || task.headForm?.(base) !== undefined) return task
  }
  return undefined
}

/** The tasks that a model can be trained for; all without a model. */
export async function tasksFor(model?: Model): Promise<Task[]> {
  const tasks = await Promise.all(TASK_NAMES.map(loadTask))
  return model === undefined ? tasks : tasks.filter((task) => canTrain(task, model))
}

function canTrain(task: Task, model: Model): boolean {
  try {
    task.check(model)
    return true
  } catch (error) {
    if (error instanceof LowrankError) return false
    throw error
  }
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
