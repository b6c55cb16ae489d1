// LLaVA.

import type { ModelTypes } from './family.js'

export const TYPES: ModelTypes = { llava: { pictures: 'alone' }, llava_onevision: { pictures: 'alone' } }
