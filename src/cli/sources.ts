// What commands share that name models and adapters: how sources stand in help, and the choice of a graph.

import type { DtypeChoice } from '../index.js'
import { type Option, text } from './options.js'

/** A model: a path, a model on the Hub, or a URL. */
export const MODEL = 'DIR|FILE|ID'
/** An adapter: the same, without single files. */
export const ADAPTER = 'DIR|ID'

/** What a model that runs can be. */
export const RUNS =
  'model: an id on the Hub, a folder (config.json, tokenizer.json, onnx/model.onnx), or its .onnx file'

/** The API refuses what is no such type, with a near miss. */
export function dtype(): Option<DtypeChoice | undefined> {
  const about =
    'weight type of the graph to read: fp32, fp16, q8, int8, uint8, q4, q4f16, bnb4; default: the type in config.json, else fp32'
  return text('TYPE', about) as Option<DtypeChoice | undefined>
}

/** Where a model runs. The runtime refuses what it does not have, and lists what it has. */
export const DEVICE = text('NAME', 'where the model runs: cpu, webgpu, cuda, coreml, dml; default: cpu')
