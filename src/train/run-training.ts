// What a trainer does once it is told to: reads and encodes the records, makes the adapter for the model, and trains it.

import { listed } from '../base/errors.js'
import { readRows } from '../data/read-rows.js'
import { isByteSource, isDirectory } from '../data/source.js'
import { planSplit } from '../data/split.js'
import { findLinears, type ModuleMap } from '../graph/match/linears.js'
import { matchTargets } from '../graph/match/match.js'
import type { Model } from '../graph/model-folder.js'
import { checkTrainableForm } from '../graph/training/trainable-form.js'
import { Graph } from '../graph/view/graph.js'
import { LoraAdapter } from '../lora/adapter.js'
import type { LoraConfig } from '../lora/config.js'
import type { Task } from '../tasks/task.js'
import { DEFAULT_TASK, loadTask } from '../tasks/tasks.js'
import { type EncodedRows, encodeRows } from './examples.js'
import type { TrainerOptions, TrainingData, TrainResult } from './options.js'
import type { TrainReport } from './report.js'
import { checkRunFolder, type FolderUse } from './run-folder.js'
import type { TrainSettings } from './settings.js'
import { trainAdapter } from './training-run.js'

/** See Trainer.train, whose options have been checked. */
export async function runTraining(
  options: TrainerOptions,
  settings: TrainSettings,
  config: LoraConfig,
): Promise<TrainResult> {
  const startedAt = performance.now()
  const { model, out, on, modules, signal } = options
  const task = await loadTask(options.task ?? DEFAULT_TASK)
  const use: FolderUse = options.resume ? 'resume' : options.overwrite ? 'overwrite' : 'new'
  if (out !== undefined) await checkRunFolder(out, use)
  on?.stage?.('encode')
  const { evalSplit } = options
  const isHeldOut = evalSplit === undefined ? undefined : planSplit(evalSplit, config.seed)
  const { kept: records, heldOut } = await encode(options, settings, task, options.data, 'data', isHeldOut)
  const evalRecords =
    options.evalData === undefined
      ? heldOut
      : (await encode(options, settings, task, options.evalData, 'evalData', undefined)).kept
  on?.stage?.('prepare')
  const adapter =
    options.adapter ?? newAdapter(model, { ...config, taskType: config.taskType ?? task.peftType }, modules)
  const result = await trainAdapter({
    model,
    task: task.name,
    open: task.open(model, records.examples),
    adapter,
    modules,
    settings,
    examples: records.examples,
    evalExamples: evalRecords.rows === 0 ? undefined : evalRecords.examples,
    out: out === undefined ? undefined : { directory: out, use },
    signal,
    on: on ?? {},
  })
  const { totalTrainable, totalParams } = adapter.summary()
  const report: TrainReport = {
    ...result,
    truncatedRecords: records.truncatedRecords,
    skippedRecords: records.skippedRecords,
    trainableParams: totalTrainable,
    totalParams,
    seconds: (performance.now() - startedAt) / 1000,
  }
  return { adapter, report }
}

async function encode(
  { model, on, columns, chatTemplate, chatTemplateArgs }: TrainerOptions,
  settings: TrainSettings,
  task: Task,
  data: TrainingData,
  name: string,
  isHeldOut: ((index: number) => boolean) | undefined,
): Promise<{ kept: EncodedRows; heldOut: EncodedRows }> {
  const where = nameOf(data, name)
  const { maxLength } = settings
  const encoding = { task, model, maxLength, chatTemplate, chatTemplateArgs, isHeldOut, name: where }
  const encoded = await encodeRows(readRows(data, { name, columns }), encoding)
  const { kept, heldOut } = encoded
  const all = kept.rows + heldOut.rows
  const warn = (count: number, what: string) => {
    if (count > 0) on?.warning?.(`${where}: ${count} of ${all} records ${what}`)
  }
  warn(kept.truncatedRecords + heldOut.truncatedRecords, `cut to ${encoded.maxLength} tokens`)
  warn(kept.skippedRecords + heldOut.skippedRecords, 'left out, because they have no target')
  return encoded
}

/** What messages call the data: files and folders by their own names. */
function nameOf(data: TrainingData, name: string): string {
  const files = Array.isArray(data) ? data : [data]
  const names = files.map((file) => (isByteSource(file) || isDirectory(file) ? file.name : undefined))
  return names.length > 0 && !names.includes(undefined) ? listed(names as string[]) : name
}

function newAdapter(model: Model, config: LoraConfig, modules: ModuleMap | undefined): LoraAdapter {
  const graph = new Graph(model.onnx.proto)
  checkTrainableForm(graph)
  const adapter = new LoraAdapter(config)
  for (const { name, d, k } of matchTargets(findLinears(graph, modules), config)) {
    if (!adapter.has(name)) adapter.addLayerOfShape(name, [d, k])
  }
  return adapter
}
