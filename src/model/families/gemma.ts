// Gemma: norms multiply by 1 + w, and one weight is both embeddings unless the config says otherwise.

import type { ModelType, ModelTypes } from './family.js'
import { score } from './heads.js'

const tied: ModelType = { isTied: true }
const text: ModelType = { ...tied, normOffset: 1, heads: { text: score('model') } }

export const TYPES: ModelTypes = {
  gemma: text,
  gemma2: text,
  gemma3: { ...tied, normOffset: 1, pictures: 'between' },
  gemma3_text: text,
  gemma3n: tied,
  gemma3n_text: tied,
  gemma4: tied,
  gemma4_text: tied,
}
