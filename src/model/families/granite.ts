// Granite 4: gate and up are one module, and onnxruntime-genai gives the modules of the MLP Llama's names.

import type { ModelTypes } from './family.js'

const EXPERTS = ['block_sparse_moe.experts.gate_up_proj', 'block_sparse_moe.experts.down_proj'] as const

export const TYPES: ModelTypes = {
  granitemoe: { experts: EXPERTS },
  granitemoehybrid: {
    exported: { 'mlp.down_proj': 'shared_mlp.output_linear' },
    packed: { 'shared_mlp.input_linear': ['mlp.gate_proj', 'mlp.up_proj'] },
    normOffset: 0,
    experts: EXPERTS,
  },
}
