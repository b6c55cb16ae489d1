// Makes the benchmark's inputs: a Llama-shaped checkpoint of random bf16 values in one file, and adapters on all its linears.

import { randomFillSync } from 'node:crypto'
import { closeSync, existsSync, mkdirSync, openSync, renameSync, writeFileSync, writeSync } from 'node:fs'
import { join } from 'node:path'

const HIDDEN = 2048
const INTERMEDIATE = 5632
const KEYS = 256
const VOCABULARY = 32000
const BUFFER = new Uint32Array(1 << 22)
randomFillSync(BUFFER)

const LINEARS = {
  'self_attn.q_proj': [HIDDEN, HIDDEN],
  'self_attn.k_proj': [KEYS, HIDDEN],
  'self_attn.v_proj': [KEYS, HIDDEN],
  'self_attn.o_proj': [HIDDEN, HIDDEN],
  'mlp.gate_proj': [INTERMEDIATE, HIDDEN],
  'mlp.up_proj': [INTERMEDIATE, HIDDEN],
  'mlp.down_proj': [HIDDEN, INTERMEDIATE],
}

/** TinyLlama's shapes; 22 layers are 2.2 GB. */
export function makeBase(folder, layers) {
  if (existsSync(join(folder, 'config.json'))) return
  mkdirSync(folder, { recursive: true })
  const tensors = [['model.embed_tokens.weight', [VOCABULARY, HIDDEN]]]
  for (let i = 0; i < layers; i++) {
    const layer = `model.layers.${i}`
    tensors.push([`${layer}.input_layernorm.weight`, [HIDDEN]])
    for (const [name, shape] of Object.entries(LINEARS)) tensors.push([`${layer}.${name}.weight`, shape])
    tensors.push([`${layer}.post_attention_layernorm.weight`, [HIDDEN]])
  }
  tensors.push(['model.norm.weight', [HIDDEN]], ['lm_head.weight', [VOCABULARY, HIDDEN]])
  // Exponents from 2⁻⁷ to 2⁰, so that no value is infinite or NaN.
  const values = BUFFER.map((bits) => (bits & 0x83ff83ff) | 0x3c003c00)
  write(join(folder, 'model.safetensors'), tensors, 'BF16', 2, values)
  const config = {
    architectures: ['LlamaForCausalLM'],
    model_type: 'llama',
    hidden_size: HIDDEN,
    intermediate_size: INTERMEDIATE,
    num_hidden_layers: layers,
    num_attention_heads: 32,
    num_key_value_heads: 4,
    vocab_size: VOCABULARY,
    tie_word_embeddings: false,
    torch_dtype: 'bfloat16',
  }
  writeFileSync(join(folder, 'config.json'), JSON.stringify(config, null, 2))
}

export function makeAdapter(folder, layers, rank) {
  if (existsSync(join(folder, 'adapter_config.json'))) return
  mkdirSync(folder, { recursive: true })
  const tensors = []
  for (let i = 0; i < layers; i++) {
    for (const [name, [d, k]] of Object.entries(LINEARS)) {
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
    target_modules: Object.keys(LINEARS).map((name) => name.split('.')[1]),
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
