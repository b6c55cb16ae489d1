// BART, whose attention Whisper and CLIP share.

import type { ModelTypes } from './family.js'

export const TYPES: ModelTypes = {
  bart: { attention: [/\b(self_attn|encoder_attn)$/, ['q_proj', 'k_proj', 'v_proj']] },
}
