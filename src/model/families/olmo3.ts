// OLMo 3.

import type { ModelTypes } from './family.js'
import { score } from './heads.js'

export const TYPES: ModelTypes = { olmo3: { heads: { text: score('model') } } }
