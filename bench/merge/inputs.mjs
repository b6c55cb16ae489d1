// Makes the benchmark's inputs: a checkpoint of random bf16 values in one file with the shapes of a real model, and
// adapters for all its linear layers.

import { randomFillSync } from 'node:crypto'
import { closeSync, existsSync, mkdirSync, openSync, renameSync, writeFileSync, writeSync } from 'node:fs'
import { join } from 'node:path'

/** The config.json of each model: TinyLlama 1.1B (2.2 GB), and the sizes of Qwen3 4B (8.0 GB) as a Llama. */
export const MODELS = {
  tinyllama: {
    num_hidden_layers: 22,
    hidden_size: 2048,
    intermediate_size: 5632,
    num_attention_heads: 32,
    num_key_value_heads: 4,
    head_dim: 64,
    vocab_size: 32000,
    tie_word_embeddings: false,
  },
  'qwen3-4b': {
    num_hidden_layers: 36,
    hidden_size: 2560,
    intermediate_size: 9728,
    num_attention_heads: 32,
    num_key_value_heads: 8,
    head_dim: 128,
    vocab_size: 151936,
    tie_word_embeddings: true,
  },
}
const BUFFER = new Uint32Array(1 << 22)
randomFillSync(BUFFER)

function linearsOf(shape) {
  const [hidden, intermediate] = [shape.hidden_size, shape.intermediate_size]
  const queries = shape.num_attention_heads * shape.head_dim
  const keys = shape.num_key_value_heads * shape.head_dim
  return {
    'self_attn.q_proj': [queries, hidden],
    'self_attn.k_proj': [keys, hidden],
    'self_attn.v_proj': [keys, hidden],
    'self_attn.o_proj': [hidden, queries],
    'mlp.gate_proj': [intermediate, hidden],
    'mlp.up_proj': [intermediate, hidden],
    'mlp.down_proj': [hidden, intermediate],
  }
}

export function makeBase(folder, shape) {
  if (existsSync(join(folder, 'config.json'))) return
  mkdirSync(folder, { recursive: true })
  const { hidden_size: hidden, vocab_size: vocabulary } = shape
  const tensors = [['model.embed_tokens.weight', [vocabulary, hidden]]]
  for (let i = 0; i < shape.num_hidden_layers; i++) {
    const layer = `model.layers.${i}`
    tensors.push([`${layer}.input_layernorm.weight`, [hidden]])
    for (const [name, size] of Object.entries(linearsOf(shape))) tensors.push([`${layer}.${name}.weight`, size])
    tensors.push([`${layer}.post_attention_layernorm.weight`, [hidden]])
  }
  tensors.push(['model.norm.weight', [hidden]])
  if (!shape.tie_word_embeddings) tensors.push(['lm_head.weight', [vocabulary, hidden]])
  // Exponents from 2⁻⁷ to 2⁰, so that no value is infinite or NaN.
  const values = BUFFER.map((bits) => (bits & 0x83ff83ff) | 0x3c003c00)
  write(join(folder, 'model.safetensors'), tensors, 'BF16', 2, values)
  const config = { architectures: ['LlamaForCausalLM'], model_type: 'llama', torch_dtype: 'bfloat16', ...shape }
  writeFileSync(join(folder, 'config.json'), JSON.stringify(config, null, 2))
}

export function makeAdapter(folder, shape, rank) {
  if (existsSync(join(folder, 'adapter_config.json'))) return
  mkdirSync(folder, { recursive: true })
  const tensors = []
  const linears = linearsOf(shape)
  for (let i = 0; i < shape.num_hidden_layers; i++) {
    for (const [name, [d, k]] of Object.entries(linears)) {
      const prefix = `base_model.model.model.layers.${i}.${name}`
      tensors.push([`${prefix}.lora_A.weight`, [rank, k]], [`${prefix}.lora_B.weight`, [d, rank]])
    }
  }
  // f32 of magnitude 2⁻⁷ to 2⁻⁵.
  const values = BUFFER.map((bits) => (bits & 0x80ffffff) | 0x3c000000)
  write(join(folder, 'adapter_model.safetensors'), tensors, 'F32', 4, values)
  const config = {
    peft_type: 'LORA',
    task_type: 'CAUSAL_LM',
    r: rank,
    lora_alpha: 2 * rank,
    lora_dropout: 0,
    bias: 'none',
    target_modules: Object.keys(linears).map((name) => name.split('.')[1]),
  }
  writeFileSync(join(folder, 'adapter_config.json'), JSON.stringify(config, null, 2))
}

function write(file, tensors, dtype, size, values) {
  const header = { __metadata__: { format: 'pt' } }
  let end = 0
  for (const [name, shape] of tensors) {
    const byteLength = shape.reduce((a, b) => a * b, size)
    header[name] = { dtype, shape, data_offsets: [end, end + byteLength] }
    end += byteLength
  }
  let json = JSON.stringify(header)
  json += ' '.repeat((8 - (Buffer.byteLength(json) % 8)) % 8)
  const length = Buffer.alloc(8)
  length.writeBigUInt64LE(BigInt(json.length))
  const fd = openSync(`${file}.tmp`, 'w')
  writeSync(fd, Buffer.concat([length, Buffer.from(json)]))
  const bytes = Buffer.from(values.buffer)
  for (let left = end; left > 0; ) left -= writeSync(fd, bytes, 0, Math.min(left, bytes.length))
  closeSync(fd)
  renameSync(`${file}.tmp`, file)
}
