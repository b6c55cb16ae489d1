// A run's folder: PEFT's adapter, metrics.jsonl, lowrank.json (the marker that lowrank wrote it), and the state.

import { type Directory, readAll, readJson, withSource, writeFile } from '../../core/base/bytes.js'
import { FileError, FormatError, listed } from '../../core/base/errors.js'
import { jsonIn } from '../../core/base/options.js'
import { parseSafetensorsHeader, readTensorF32, saveSafetensors, type TensorBytes } from '../../files/safetensors.js'
import type { BaseRecord } from '../../lora/adapter.js'
import { CARD_FILE, MARKER_FILE, TEMPLATE_FILE } from '../../lora/peft/file-names.js'
import { bytesOf } from '../../onnx/format/tensors.js'
import type { EngineState } from '../engine/engine.js'
import type { Evaluation, SampleEvent, StepMetrics } from '../report.js'
import type { BestState } from './best.js'

export const METRICS_FILE = 'metrics.jsonl'
export const STATE_FILE = 'training-state.safetensors'
/** A line for each evaluation, and one for the answers to the prompts of `sample` at a step. */
export const EVALUATIONS_FILE = 'evaluations.jsonl'
export const PAGE_FILE = 'report.html'
export const RECORD_FILE = 'run.json'

export const RUN_FILES: readonly string[] = [
  'adapter_config.json',
  'adapter_model.safetensors',
  TEMPLATE_FILE,
  METRICS_FILE,
  EVALUATIONS_FILE,
  PAGE_FILE,
  STATE_FILE,
  RECORD_FILE,
  CARD_FILE,
  MARKER_FILE,
]

export interface Marker {
  version: 1
  kind: 'training run'
  status: 'unfinished' | 'finished'
  task?: string
  base?: BaseRecord
}

/** Permission of a run: for an empty folder only, to go on with the run in it, or to replace that run. */
export type FolderUse = 'new' | 'resume' | 'overwrite'

export interface RunPlace {
  directory: Directory
  use: FolderUse
}

export async function checkRunFolder(directory: Directory, use: FolderUse): Promise<void> {
  const files = await directory.list()
  const where = directory.name
  if (use === 'resume' ? await directory.has(STATE_FILE) : files.length === 0) return
  const marker = await readMarker(directory)
  const isOurs = marker !== undefined
  if (use === 'resume') {
    const isFinished = marker?.status === 'finished'
    throw new FileError({
      where,
      what: isFinished ? 'the run in this folder is finished' : 'there is no unfinished run in this folder',
      hint: isFinished
        ? 'Replace it with `overwrite`, or choose another folder. A run with `keepState` can be made longer'
        : isOurs
          ? 'The run in it was stopped before it saved anything. Replace it with `overwrite`'
          : 'Leave out `resume`',
    })
  }
  if (use === 'new') {
    throw new FileError({
      where,
      what: 'the output folder is not empty',
      got: listed(files),
      hint: isOurs ? 'Use `resume` or `overwrite`, or choose another folder' : 'Choose another folder',
    })
  }
  if (!isOurs) {
    throw new FileError({
      where,
      what: 'not overwritten, because lowrank did not write this folder',
      expected: `a folder with ${MARKER_FILE}`,
      got: listed(files),
      hint: 'Choose another folder, or empty this one yourself',
    })
  }
}

export async function readMarker(directory: Directory): Promise<Marker | undefined> {
  if (!(await directory.has(MARKER_FILE))) return undefined
  const value = (await readJson(directory, MARKER_FILE)) as Partial<Marker> | null
  return value?.version === 1 && value.kind === 'training run' ? (value as Marker) : undefined
}

export async function writeMarker(
  directory: Directory,
  status: Marker['status'],
  about: Pick<Marker, 'task' | 'base'> = {},
): Promise<void> {
  const marker: Marker = { version: 1, kind: 'training run', status, ...about }
  await writeFile(directory, MARKER_FILE, `${JSON.stringify(marker, null, 2)}\n`)
}

/** The marker is removed last: until then the folder counts as ours. */
export async function clearRunFolder(directory: Directory): Promise<void> {
  await removeFiles(directory, RUN_FILES)
}

export async function removeFiles(directory: Directory, files: readonly string[]): Promise<void> {
  for (const file of files) if (await directory.has(file)) await directory.remove(file)
}

export function linesOf(entries: readonly object[]): string {
  return entries.map((entry) => `${JSON.stringify(entry)}\n`).join('')
}

/**
 * Reads the metrics of the first `steps` steps. A crash may have left later lines, even half of one: those steps run
 * again.
 */
export async function readMetrics(directory: Directory, steps: number): Promise<StepMetrics[]> {
  const text = new TextDecoder().decode(await withSource(directory, METRICS_FILE, readAll))
  try {
    const lines = text.split('\n').slice(0, steps)
    const metrics = lines.map((line) => JSON.parse(line) as StepMetrics | null)
    const isOfStep = (entry: StepMetrics | null, i: number): entry is StepMetrics => entry?.step === i + 1
    if (metrics.length === steps && metrics.every(isOfStep)) return metrics
    throw new SyntaxError(`lines of steps 1 to ${steps} expected`)
  } catch (cause) {
    if (!(cause instanceof SyntaxError)) throw cause
    throw new FormatError({
      where: `${directory.name}/${METRICS_FILE}`,
      what: `it does not belong to the state beside it (${cause.message})`,
      hint: 'Overwrite the run, or train into another folder',
      cause,
    })
  }
}

export interface RunState {
  step: number
  fingerprint: Record<string, string>
  evaluations: Evaluation[]
  samples: SampleEvent[]
  best?: BestState | undefined
}

const STATE_PARTS = ['parameters', 'firstMoments', 'secondMoments'] as const

/** Writes the state as one file, so that all its parts are always of the same step. */
export async function writeState(directory: Directory, names: readonly string[], engine: EngineState, run: RunState) {
  const tensors = ([...STATE_PARTS, 'best'] as const).flatMap((part) =>
    (engine[part] ?? []).map((values, i): TensorBytes => {
      return { name: `${part}/${names[i]}`, dtype: 'fp32', shape: [values.length], data: bytesOf(values) }
    }),
  )
  await saveSafetensors(directory, STATE_FILE, tensors, {
    run: JSON.stringify({ ...run, updates: engine.updates }),
  })
}

/** `check` sees the run before its tensors are read, and throws when it is another run's. */
export function readState(directory: Directory, names: readonly string[], check: (run: RunState) => void) {
  return withSource(directory, STATE_FILE, async (source) => {
    const file = await parseSafetensorsHeader(source)
    const written = jsonIn(file.metadata.run)
    if (!isRunState(written)) throw new FormatError({ where: source.name, what: 'not the state of a training run' })
    // A step without a gradient is none of AdamW.
    const { updates = written.step, ...run } = written
    check(run)
    const read = async (part: string): Promise<Float32Array[]> => {
      const arrays: Float32Array[] = []
      for (const name of names) arrays.push((await readTensorF32(file, `${part}/${name}`)).data)
      return arrays
    }
    const engine: EngineState = {
      parameters: await read('parameters'),
      firstMoments: await read('firstMoments'),
      secondMoments: await read('secondMoments'),
      updates,
      ...(file.tensors.has(`best/${names[0]}`) && { best: await read('best') }),
    }
    return { engine, run }
  })
}

function isRunState(value: unknown): value is RunState & { updates?: number } {
  if (typeof value !== 'object' || value === null) return false
  const {
    step,
    updates = step,
    fingerprint,
    evaluations,
    samples,
    best,
  } = value as Partial<RunState> & { updates?: unknown }
  return (
    Array.isArray(evaluations) &&
    evaluations.every(isEvaluation) &&
    Array.isArray(samples) &&
    (best === undefined || (Number.isSafeInteger(best?.stale) && isEvaluation(best.best))) &&
    Number.isSafeInteger(step) &&
    Number(step) >= 0 &&
    Number.isSafeInteger(updates) &&
    Number(updates) >= 0 &&
    typeof fingerprint === 'object' &&
    fingerprint !== null
  )
}

function isEvaluation(value: unknown): value is Evaluation {
  const { step, loss, metrics } = (value ?? {}) as Partial<Evaluation>
  return typeof loss === 'number' && Number.isSafeInteger(step) && typeof metrics === 'object' && metrics !== null
}
