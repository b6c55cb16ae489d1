// Aria.

import type { ModelTypes } from './family.js'

export const TYPES: ModelTypes = { aria: { hasInputMajorExperts: true }, aria_text: { hasInputMajorExperts: true } }
