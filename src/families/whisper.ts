// Whisper.

import type { Config, HeadForm, ModelTypes } from './family.js'

/** Two layers over the mean of all times; transformers computes the first layer before the mean. */
function audio({ use_weighted_layer_sum: isWeighted, classifier_proj_size: width }: Config): HeadForm | undefined {
  if (isWeighted === true) return undefined
  const projector = { module: 'projector', isOfEach: true, width: typeof width === 'number' ? width : 256 }
  return {
    ...{ encoder: 'encoder', rows: 'mean', layers: [projector, { module: 'classifier' }] },
    ...{ modulesToSave: ['projector', 'classifier'], architecture: 'WhisperForAudioClassification' },
  }
}

export const TYPES: ModelTypes = { whisper: { heads: { audio } } }
