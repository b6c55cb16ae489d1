// Makes the inputs for run.mjs from a fixed seed: the change of a weight whose singular values fall as after
// fine-tuning, and adapters and checkpoints with TinyLlama's shapes.

import { closeSync, mkdirSync, openSync, writeFileSync, writeSync } from 'node:fs'
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

/** Makes an n × n change like that of fine-tuning: falling singular values over a floor of noise. */
export function change(n) {
  const data = noise(n * n, 0.5)
  for (let r = 0; r < 100; r++) {
    const [a, b] = [noise(n, 2.5 / (r + 1)), noise(n)]
    for (let i = 0; i < n; i++) for (let j = 0; j < n; j++) data[i * n + j] += a[i] * b[j]
  }
  return data
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

const SHARD_BYTES = 800e6

/**
 * Writes a base and its fine-tuned form in bf16, in shards of at most 0.8 GB. All linear layers change by rank 4 plus a
 * little noise; embeddings and norms stay. Returns the bytes of one checkpoint.
 */
export function writePair(folder, layers) {
  const tensors = [['model.embed_tokens.weight', [32000, 2048]]]
  for (let i = 0; i < layers; i++) {
    for (const [name, shape] of Object.entries(SHAPES)) tensors.push([`model.layers.${i}.${name}.weight`, shape])
    for (const name of ['input_layernorm', 'post_attention_layernorm']) {
      tensors.push([`model.layers.${i}.${name}.weight`, [2048]])
    }
  }
  tensors.push(['model.norm.weight', [2048]], ['lm_head.weight', [32000, 2048]])
  const shards = [[]]
  let bytes = 0
  for (const tensor of tensors) {
    const size = sizeOf(tensor)
    if (bytes + size > SHARD_BYTES) {
      shards.push([])
      bytes = 0
    }
    shards.at(-1).push(tensor)
    bytes += size
  }
  const names = ['base', 'tuned'].map((name) => writeModel(join(folder, name), layers))
  const weightMap = {}
  let total = 0
  for (const [index, shard] of shards.entries()) {
    const file = `model-${String(index + 1).padStart(5, '0')}-of-${String(shards.length).padStart(5, '0')}.safetensors`
    const handles = names.map((name) => openShard(join(name, file), shard))
    for (const [name, shape] of shard) {
      weightMap[name] = file
      total += sizeOf([name, shape])
      const [before, after] = valuesOf(name, shape)
      writeSync(handles[0], before)
      writeSync(handles[1], after)
    }
    handles.forEach(closeSync)
  }
  const index = JSON.stringify({ metadata: { total_size: total }, weight_map: weightMap })
  for (const name of names) writeFileSync(join(name, 'model.safetensors.index.json'), index)
  return total
}

function sizeOf([, shape]) {
  return 2 * shape.reduce((product, size) => product * size, 1)
}

function openShard(path, tensors) {
  let at = 0
  const header = { __metadata__: { format: 'pt' } }
  for (const tensor of tensors) {
    const [name, shape] = tensor
    header[name] = { dtype: 'BF16', shape, data_offsets: [at, at + sizeOf(tensor)] }
    at += sizeOf(tensor)
  }
  const json = JSON.stringify(header)
  const padded = Buffer.from(json.padEnd(8 * Math.ceil(Buffer.byteLength(json) / 8)))
  const length = Buffer.alloc(8)
  length.writeBigUInt64LE(BigInt(padded.length))
  const file = openSync(path, 'w')
  writeSync(file, length)
  writeSync(file, padded)
  return file
}

const POOL = noise(1 << 22, 0.05)
const FLOOR = noise(1 << 16, 0.0005)

/** Makes the bytes of a tensor for both checkpoints. */
function valuesOf(name, shape) {
  const count = shape.reduce((product, size) => product * size, 1)
  const start = Math.abs(state) % POOL.length
  const [before, after] = [new Uint16Array(count), new Uint16Array(count)]
  const [value, bits] = bitsOfOne()
  const isChanged = shape.length > 1 && !/embed_tokens|lm_head/.test(name)
  const [d, k] = isChanged ? shape : [1, count]
  const factors = [0, 1, 2, 3].map((r) => [noise(d, isChanged ? 0.02 / (r + 1) : 0), noise(k)])
  const [[a0, b0], [a1, b1], [a2, b2], [a3, b3]] = factors
  for (let i = 0, at = 0; i < d; i++) {
    const [x, y, z, w] = [a0[i], a1[i], a2[i], a3[i]]
    for (let j = 0; j < k; j++, at++) {
      const drawn = POOL[(start + at) & (POOL.length - 1)]
      value[0] = drawn
      before[at] = (bits[0] + 0x8000) >>> 16
      if (isChanged) value[0] = drawn + FLOOR[at & (FLOOR.length - 1)] + x * b0[j] + y * b1[j] + z * b2[j] + w * b3[j]
      after[at] = (bits[0] + 0x8000) >>> 16
    }
  }
  return [before, after].map((half) => new Uint8Array(half.buffer))
}

function bitsOfOne() {
  const value = new Float32Array(1)
  return [value, new Uint32Array(value.buffer)]
}

// Runs in a separate process: the memory of a process that starts another counts for that one too.
const [, script, kind, path, layers, rank, dtype] = process.argv
if (script === fileURLToPath(import.meta.url)) {
  reseed(basename(path))
  if (kind === 'pair') console.log(writePair(path, Number(layers)))
  else console.log(await writeAdapter(path, { rank: Number(rank), layers: Number(layers), dtype }))
}
