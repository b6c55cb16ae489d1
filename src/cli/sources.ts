// What commands share that name models and adapters: how sources stand in help, and the choice of a graph.

import type { DtypeChoice } from '../index.js'
import { choice, type Option, text } from './options.js'

/** A model: a path, a model on the Hub, or a URL. */
export const MODEL = 'DIR|FILE|ID'
/** An adapter: the same, without single files. */
export const ADAPTER = 'DIR|ID'

/** What a model that runs can be. */
export const RUNS =
  'model: an id on the Hub, a folder (config.json, tokenizer.json, onnx/model.onnx), or its .onnx file'

/** Types of weights, as transformers.js names them. */
const DTYPES = [
  'auto',
  'fp32',
  'fp16',
  'q8',
  'int8',
  'uint8',
  'q4',
  'q4f16',
  'bnb4',
  'q2',
  'q2f16',
  'q1',
  'q1f16',
] as const satisfies readonly DtypeChoice[]

export function dtype(): Option<(typeof DTYPES)[number] | undefined> {
  const about = `type of the weights: chooses the .onnx file to read. ${DTYPES.join(', ')}; default: auto, the type in config.json, or fp32 if it has none`
  return { ...choice(DTYPES, about), placeholder: 'TYPE' }
}

/** Where a model runs. The runtime refuses what it does not have, and lists what it has. */
export const DEVICE = text('NAME', 'where the model runs: cpu, webgpu, cuda, coreml, dml; default: cpu')
