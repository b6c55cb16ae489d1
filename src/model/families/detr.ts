// DETR and its successors, whose modules were renamed in transformers 5.

import type { ModelTypes, Spelling } from './family.js'

const spellings: readonly Spelling[] = [
  [/\bbackbone\.conv_encoder\b/, 'backbone'],
  [/\bencoder\.encoder\.(?=\d+\.layers\.)/, 'encoder.aifi.'],
  [/\.sa_([qk])(content|pos)_proj$/, '.self_attn.$1_$2_proj'],
  [/\.sa_v_proj$/, '.self_attn.v_proj'],
  [/\.ca_([qk])(content|pos|pos_sine)_proj$/, '.encoder_attn.$1_$2_proj'],
  [/\.ca_v_proj$/, '.encoder_attn.v_proj'],
  [/\.out_proj$/, '.o_proj'],
  [/(\blayers\.\d+)\.(fc[12])$/, '$1.mlp.$2'],
]

export const TYPES: ModelTypes = {
  detr: { spellings },
  d_fine: { spellings: [...spellings, [/\.mlp\.fc1$/, '.mlp.layers.0'], [/\.mlp\.fc2$/, '.mlp.layers.1']] },
}
