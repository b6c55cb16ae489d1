// A tiny model, a few records, and a training run that takes a fraction of a second.

import { readFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import * as ort from 'onnxruntime-node'
import type { OrtModule, TextRecord, TrainResult } from '../../src/api/node.js'
import { NodeDirectory } from '../../src/files/io/node/files.js'
import type { TrainInput } from '../../src/train/options.js'
import { train } from '../../src/train/train.js'

export const module = ort as unknown as OrtModule
export const path = (relative: string) => fileURLToPath(new URL(`../../${relative}`, import.meta.url))
/** Two layers of width 32 with random weights, as optimum exports them. */
export const folder = new NodeDirectory(path('tests/golden/models/llama-optimum'))
const records = (file: string, count: number): TextRecord[] =>
  readFileSync(path(`models/data/${file}`), 'utf8')
    .split('\n')
    .slice(0, count)
    .map((line) => JSON.parse(line))

export const data = records('scripture.jsonl', 24)
export const evalData = records('scripture.eval.jsonl', 4)
export const WEIGHTS = 'adapter_model.safetensors'

/** Six short steps, two of them in a second epoch. */
export function trainTiny(options: Partial<TrainInput> & Pick<TrainInput, 'model'>): Promise<TrainResult> {
  return train({
    data: data.slice(0, 16),
    maxLength: 24,
    batchSize: 4,
    maxSteps: 6,
    learningRate: 5e-3,
    threads: 1,
    ...options,
    config: options.adapter === undefined ? { rank: 4, dropout: 0.1, ...options.config } : undefined,
  })
}

/** A signal that is aborted during the given step. */
export function abortAt(step: number): Pick<TrainInput, 'signal' | 'on'> {
  const controller = new AbortController()
  return { signal: controller.signal, on: { step: (event) => void (event.step === step && controller.abort()) } }
}
