// GPT-2 and decoders whose model is called `transformer`.

import type { ModelType, ModelTypes } from './family.js'
import { score } from './heads.js'

const scored: ModelType = { heads: { text: score('transformer') } }

export const TYPES: ModelTypes = {
  bloom: scored,
  falcon: scored,
  gpt2: {
    ...scored,
    conv1d: /(^|\.)h\.\d+\.(attn|crossattention|mlp)\.(c_attn|q_attn|c_proj|c_fc)$/,
    attention: [/\bh\.\d+\.attn$/, ['c_attn']],
  },
  gpt_bigcode: scored,
  gpt_neo: scored,
  gptj: scored,
  mpt: scored,
}
