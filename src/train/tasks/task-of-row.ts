// Chooses the task if the caller names none: by the fields of a row of data, or by the model.

import { isObject } from '../../core/base/options.js'
import type { Model, TextModel } from '../../model/model-folder.js'
import { LABEL_NAMES } from '../../model/text/records.js'
import type { Task } from './task.js'
import { canTrain, loadTask, TASK_NAMES, type TaskName } from './tasks.js'

export function defaultTask({ config }: Pick<Model, 'config'>): TaskName {
  return config.is_encoder_decoder === true ? 'seq2seq' : 'causal-lm'
}

/** Returns the tasks that fit the row. Tasks that match the most fields come first; among equals, the default. */
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

/** The fields of a row that the task does not read, each as the end of a sentence: "3 of 10 records …". */
export function unreadNotes(
  { name, records, reads }: Pick<Task, 'name' | 'records' | 'reads'>,
  row: unknown,
): string[] {
  if (!isObject(row)) return []
  const read = new Set(reads?.(row) ?? records.flatMap(Object.keys))
  const isUnread = (field: string) => !read.has(field) && row[field] !== undefined && row[field] !== null
  // `source` as an object says who wrote the row.
  const unread = Object.keys(row).filter((field) => isUnread(field) && !(field === 'source' && isObject(row.source)))
  const isText = name === 'causal-lm' && typeof row.text === 'string'
  const advice = (field: string) =>
    isText && LABEL_NAMES.includes(field) ? `: to learn labels, give \`columns: { label: '${field}' }\`` : ''
  return unread.map((field) => `have a field "${field}", which the task ${name} does not read${advice(field)}`)
}

/** A model without its graph is not asked which tasks it can be trained for. */
export async function taskOfRow(row: unknown, model: Model | TextModel | undefined): Promise<Task> {
  const byModel = model === undefined ? TASK_NAMES[0] : defaultTask(model)
  const { records } = await loadTask(byModel)
  // Spares loading all tasks for rows that only have fields of the default task.
  const isPlain =
    isObject(row) && Object.keys(row).every((field) => records.some((record) => Object.hasOwn(record, field)))
  for (const task of isPlain ? [] : await tasksOfRow(row, byModel))
    if (model === undefined || !('onnx' in model) || canTrain(task, model)) return task
  return loadTask(byModel)
}
