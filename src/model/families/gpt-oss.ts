// OpenAI's open models.

import type { ModelTypes } from './family.js'
import { score } from './heads.js'

export const TYPES: ModelTypes = {
  gpt_oss: { normOffset: 0, hasInputMajorExperts: true, hasGateInTurn: true, heads: { text: score('model') } },
  openai_privacy_filter: { hasInputMajorExperts: true, hasGateInTurn: true },
}
