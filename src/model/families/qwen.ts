// Qwen's models of texts and pictures, and Qwen3.5, whose linear attention has other names in onnxruntime-genai.

import type { ModelType, ModelTypes } from './family.js'

const qwen3_5: ModelType = {
  exported: {
    'linear_attn.qkv_proj': 'linear_attn.in_proj_qkv',
    'linear_attn.z_proj': 'linear_attn.in_proj_z',
    'linear_attn.a_proj': 'linear_attn.in_proj_a',
    'linear_attn.b_proj': 'linear_attn.in_proj_b',
  },
}

export const TYPES: ModelTypes = {
  qwen2_vl: { pictures: 'alone' },
  qwen2_5_vl: { pictures: 'alone' },
  qwen3_vl_moe: { hasInputMajorExperts: true },
  qwen3_vl_moe_text: { hasInputMajorExperts: true },
  qwen3_5,
  qwen3_5_text: qwen3_5,
}
