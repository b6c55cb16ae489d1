// Idefics 3 and SmolVLM.

import type { ModelType, ModelTypes } from './family.js'

const idefics3: ModelType = { languageModule: 'text_model', pictures: 'tiles' }

export const TYPES: ModelTypes = { idefics3, smolvlm: idefics3 }
