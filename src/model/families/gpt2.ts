// GPT-2.

import type { ModelTypes } from './family.js'
import { score } from './heads.js'

export const TYPES: ModelTypes = {
  gpt2: {
    conv1d: /(^|\.)h\.\d+\.(attn|crossattention|mlp)\.(c_attn|q_attn|c_proj|c_fc)$/,
    attention: [/\bh\.\d+\.attn$/, ['c_attn']],
    heads: { text: score('transformer') },
  },
}
