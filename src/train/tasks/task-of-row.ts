// Chooses the task if the caller names none: by the fields of a row of data, or by the model.

import { isObject } from '../../core/base/options.js'
import type { Model, TextModel } from '../../model/model-folder.js'
import type { Task, TaskName } from './task.js'
import { canTrain, loadTask, TASK_NAMES } from './tasks.js'

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
    if (task.writesTexts) continue
    const found = task.records.map(Object.entries).filter((fields) => fields.every(has))
    if (found.length > 0) fitting.push({ task, fields: Math.max(...found.map(({ length }) => length)) })
  }
  return fitting.sort((a, b) => b.fields - a.fields).map(({ task }) => task)
}

function isTruth(value: unknown): boolean {
  return typeof value === 'boolean' || (typeof value === 'string' && /^(true|false)$/i.test(value))
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
