// Makes the inputs for run.mjs from a fixed seed: adapters, and a model's config, with TinyLlama's shapes.

import { mkdirSync, writeFileSync } from 'node:fs'
import { basename, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { LoraAdapter, saveAdapter } from '../../dist/api/node.js'

export const SHAPES = {
  'self_attn.q_proj': [2048, 2048],
  'self_attn.k_proj': [256, 2048],
  'self_attn.v_proj': [256, 2048],
  'self_attn.o_proj': [2048, 2048],
  'mlp.gate_proj': [5632, 2048],
  'mlp.up_proj': [5632, 2048],
  'mlp.down_proj': [2048, 5632],
}

const config = (layers) => ({
  architectures: ['LlamaForCausalLM'],
  model_type: 'llama',
  hidden_size: 2048,
  intermediate_size: 5632,
  num_hidden_layers: layers,
  num_attention_heads: 32,
  num_key_value_heads: 4,
  rms_norm_eps: 1e-5,
  vocab_size: 32000,
  max_position_embeddings: 2048,
  tie_word_embeddings: false,
  torch_dtype: 'bfloat16',
})

let state = 1

/** Starts the random numbers again from a text. */
function reseed(text) {
  for (const letter of text) state = (Math.imul(state, 31) + letter.charCodeAt(0)) | 0
}

/** Quick noise, about N(0, scale²/3). */
export function noise(length, scale = 1) {
  const result = new Float32Array(length)
  for (let i = 0; i < length; i++) {
    state = (Math.imul(state, 1664525) + 1013904223) | 0
    result[i] = (scale * state) / 2 ** 31
  }
  return result
}

/** Writes an adapter for all linear layers. */
export async function writeAdapter(path, { rank, layers, dtype }) {
  const targetModules = Object.keys(SHAPES).map((name) => name.split('.')[1])
  const adapter = new LoraAdapter({ rank, alpha: 2 * rank, targetModules })
  for (let layer = 0; layer < layers; layer++) {
    for (const [name, [d, k]] of Object.entries(SHAPES)) {
      const [a, b] = [noise(rank * k), noise(d * rank)]
      adapter.addFactors(`model.layers.${layer}.${name}`, { data: a, shape: [rank, k] }, { data: b, shape: [d, rank] })
    }
  }
  await saveAdapter(adapter, path, { dtype })
  return path
}

/** Writes a folder whose config.json describes the model of the adapters. */
export function writeModel(path, layers) {
  mkdirSync(path, { recursive: true })
  writeFileSync(join(path, 'config.json'), JSON.stringify(config(layers)))
  return path
}

// Runs in a separate process: the memory of a process that starts another counts for that one too.
const [, script, kind, path, layers, rank, dtype] = process.argv
if (script === fileURLToPath(import.meta.url)) {
  reseed(basename(path))
  if (kind === 'adapter') console.log(await writeAdapter(path, { rank: Number(rank), layers: Number(layers), dtype }))
}
