// Phi-3, which has one layer for query, key and value, and one for gate and up.

import type { ModelTypes } from './family.js'
import { score } from './heads.js'

export const TYPES: ModelTypes = {
  phi3: {
    packed: { qkv_proj: ['q_proj', 'k_proj', 'v_proj'], gate_up_proj: ['gate_proj', 'up_proj'] },
    normOffset: 0,
    heads: { text: score('model') },
  },
}
