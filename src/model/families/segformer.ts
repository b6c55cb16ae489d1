// SegFormer, whose modules were renamed in transformers 5.

import type { ModelTypes } from './family.js'
import { attention } from './vit.js'

export const TYPES: ModelTypes = {
  segformer: {
    spellings: [
      [/\bencoder\.block\.(\d+)\.(?=\d+\.)/, 'stages.$1.blocks.'],
      [/\bencoder\.patch_embeddings\.(?=\d+\.)/, 'stages.'],
      [/(\bstages\.\d+)\.proj$/, '$1.patch_embeddings.proj'],
      ...attention,
      [/\.attention\.self\.sr$/, '.attention.sequence_reduction.sequence_reduction'],
      [/\.mlp\.dense([12])$/, '.mlp.fc$1'],
      [/\bdecode_head\.linear_c\b/, 'decode_head.linear_projections'],
    ],
  },
}
