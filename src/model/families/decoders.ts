// Decoders with few special facts.

import type { ModelType, ModelTypes } from './family.js'
import { score } from './heads.js'

const scored: ModelType = { heads: { text: score('model') } }

/** Models that onnxruntime-genai's builder exports. */
const built: ModelType = { ...scored, normOffset: 0 }

const named = (types: string, type: ModelType): ModelTypes =>
  Object.fromEntries(types.split(' ').map((name) => [name, type]))

export const TYPES: ModelTypes = {
  ...named('arcee diffllama doge exaone4 glm glm4 helium jamba jetmoe minimax ministral mixtral olmo olmo2', scored),
  ...named('opt persimmon phi qwen2_moe qwen3_moe seed_oss stablelm starcoder2', scored),
  ...named('llama mistral qwen2 qwen3 smollm3', built),
  ...named('bloom falcon gpt_bigcode gpt_neo gptj mpt', { heads: { text: score('transformer') } }),
  ...named('ernie4_5 granite hunyuan_v1_dense internlm2', { normOffset: 0 }),
  gpt_neox: { spellings: [[/(^|\.)embed_out$/, '$1lm_head']], heads: { text: score('gpt_neox') } },
  phimoe: { ...scored, spellings: [[/\.block_sparse_moe\.gate$/, '.mlp.router']] },
  nemotron: { ...scored, normOffset: 1 },
}
