// What exporters add to the weights of norms before they store them.

import type { Graph } from '../view/graph.js'

/** Types of models whose norms multiply by 1 + w, and to whose w onnxruntime-genai's builder adds the 1. */
const ADDS_ONE: ReadonlySet<string> = new Set(['gemma', 'gemma2', 'gemma3', 'gemma3_text', 'nemotron'])

/** Types of models whose weights of norms it stores as they are. */
const AS_STORED: ReadonlySet<string> = new Set([
  ...['ernie4_5', 'gpt_oss', 'granite', 'hunyuan_v1_dense', 'internlm2', 'llama', 'mistral', 'phi3', 'qwen2', 'qwen3'],
  'smollm3',
])

/**
 * What the graph's value of a norm's tensor is larger by than that of the PyTorch model; undefined where nothing tells.
 *
 * Source: `add_offset` of the builders, https://github.com/microsoft/onnxruntime-genai/tree/main/src/python/py/models/builders
 *
 * @param config config.json
 * @param name as in model.norm.weight
 */
export function normOffset(
  { producerName }: Pick<Graph, 'producerName'>,
  config: Readonly<Record<string, unknown>>,
  name: string,
): number | undefined {
  if (producerName !== 'onnxruntime-genai' || !name.endsWith('.weight')) return 0
  const type = String(config.model_type)
  if (ADDS_ONE.has(type)) return 1
  return AS_STORED.has(type) ? 0 : undefined
}

/** Why a norm without a known offset cannot be used. */
export const UNKNOWN_OFFSET =
  'for this type of model, it is not known whether onnxruntime-genai has added 1 to the weights of norms'
