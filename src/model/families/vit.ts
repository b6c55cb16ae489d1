// Vision transformers, whose modules were renamed in transformers 5.

import type { ModelTypes, Spelling } from './family.js'
import { image } from './heads.js'

export const attention: readonly Spelling[] = [
  [/\.attention\.(?:attention|self)\.(query|key|value)$/, '.attention.$1'],
  [/\.attention\.query$/, '.attention.q_proj'],
  [/\.attention\.key$/, '.attention.k_proj'],
  [/\.attention\.value$/, '.attention.v_proj'],
  [/\.attention\.output\.dense$/, '.attention.o_proj'],
]

const spellings: readonly Spelling[] = [
  ...attention,
  [/(^|\.)encoder\.layer\.(?=\d+\.)/, '$1layers.'],
  [/(\.\d+)\.intermediate\.dense$/, '$1.mlp.fc1'],
  [/(\.\d+)\.output\.dense$/, '$1.mlp.fc2'],
  // Names of Swin and BEiT if they are a part of another model.
  [/\.(encoder|model)\.(?=encoder\.layers\.\d+\.(blocks|downsample)\.)/, '.$1.swin.'],
  [/\bbackbone\.(?=layers\.)/, 'backbone.beit.'],
]

export const TYPES: ModelTypes = {
  vit: { spellings, heads: { image: image('vit', 'ViT') } },
  altclip: { spellings: [[/\bencoder\.layer\.(?=\d+\.)/, 'encoder.layers.']] },
  deit: { heads: { image: image('deit', 'DeiT') } },
  dinov2: { heads: { image: image('dinov2', 'Dinov2', 'first-and-mean') } },
}
