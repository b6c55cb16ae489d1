// LFM2, whose modules have Llama's names in onnxruntime-genai.

import type { ModelTypes } from './family.js'

export const TYPES: ModelTypes = {
  lfm2: {
    exported: {
      'mlp.gate_proj': 'feed_forward.w1',
      'mlp.up_proj': 'feed_forward.w3',
      'mlp.down_proj': 'feed_forward.w2',
      'self_attn.o_proj': 'self_attn.out_proj',
      'self_attn.q_norm': 'self_attn.q_layernorm',
      'self_attn.k_norm': 'self_attn.k_layernorm',
    },
  },
  lfm2_moe: { experts: ['feed_forward.experts.gate_up_proj', 'feed_forward.experts.down_proj'] },
}
