// The table of tasks: a line each. A task's file loads when it is first asked for. Where the
// caller names no task, the fields of a row of data tell it, or the model.

import { attempt, ConfigError, didYouMean } from '../base/errors.js'
import { isObject } from '../base/options.js'
import { inputFamily } from '../graph/inputs/family.js'
import type { Model } from '../graph/model-folder.js'
import { readGraph } from '../graph/view/graph.js'
import type { HeadBase } from './heads/heads.js'
import type { Task } from './task.js'

const LOADERS = {
  'causal-lm': async () => (await import('./causal-lm.js')).causalLm,
  'audio-classification': async () => (await import('./audio-classification.js')).audioClassification,
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

export async function loadTask(name: string): Promise<Task> {
  checkTaskName(name)
  return (await LOADERS[name]()) as unknown as Task
}

/** Looks at PEFT's task_type, or where it tells none at the model. */
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

export async function tasksFor(model?: Model): Promise<Task[]> {
  const tasks = await Promise.all(TASK_NAMES.map(loadTask))
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

export function defaultTask({ graphs, onnx }: Pick<Model, 'graphs' | 'onnx'>): TaskName {
  const hasEncoder = graphs.encoder !== undefined || inputFamily(readGraph(onnx.proto))?.behindEncoder !== undefined
  return hasEncoder ? 'seq2seq' : 'causal-lm'
}

/** Tasks whose records have the most fields of the row first, and of equal ones the default first. */
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

function isTruth(value: unknown): boolean {
  return typeof value === 'boolean' || (typeof value === 'string' && /^(true|false)$/i.test(value))
}

export function droppedLabelNote({ name, records }: Pick<Task, 'name' | 'records'>, row: unknown): string[] {
  const fields = ['label', 'labels']
  if (!isObject(row) || records.some((record) => fields.some((field) => Object.hasOwn(record, field)))) return []
  const field = fields.find((one) => row[one] !== undefined && row[one] !== null)
  return field === undefined ? [] : [`have a field "${field}", which the task ${name} does not learn`]
}

export async function taskOfRow(row: unknown, model: Model | undefined): Promise<Task> {
  const own = model === undefined ? TASK_NAMES[0] : defaultTask(model)
  const { records } = await loadTask(own)
  // Rows without other fields need no other task to be loaded.
  const isPlain =
    isObject(row) && Object.keys(row).every((field) => records.some((record) => Object.hasOwn(record, field)))
  for (const task of isPlain ? [] : await tasksOfRow(row, own))
    if (model === undefined || canTrain(task, model)) return task
  return loadTask(own)
}
