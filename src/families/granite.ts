// Granite 4: gate and up are one module, and onnxruntime-genai gives the modules of the MLP Llama's names.

import type { ModelTypes } from './family.js'

export const TYPES: ModelTypes = {
  granitemoehybrid: {
    exported: { 'mlp.down_proj': 'shared_mlp.output_linear' },
    packed: { 'shared_mlp.input_linear': ['mlp.gate_proj', 'mlp.up_proj'] },
    normOffset: 0,
  },
}
