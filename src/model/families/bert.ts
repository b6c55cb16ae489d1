// BERT and similar encoders of texts.

import type { ModelType, ModelTypes } from './family.js'
import { dense, pooled, words } from './heads.js'

const roberta: ModelType = {
  hasShiftedPositions: true,
  hasPooler: true,
  heads: { text: dense('roberta', 'Tanh'), token: words('roberta') },
}

export const TYPES: ModelTypes = {
  albert: { heads: { text: pooled('albert', 'albert.pooler', 'Tanh'), token: words('albert') } },
  bert: { hasPooler: true, heads: { text: pooled('bert', 'bert.pooler.dense', 'Tanh'), token: words('bert') } },
  camembert: roberta,
  distilbert: {
    attention: [/\btransformer\.layer\.\d+\.attention$/, ['q_lin', 'k_lin', 'v_lin']],
    heads: { text: pooled('distilbert', 'pre_classifier', 'Relu'), token: words('distilbert') },
  },
  electra: { heads: { text: dense('electra', 'Gelu'), token: words('electra') } },
  mpnet: {
    attention: [/\battention\.attn$/, ['q', 'k', 'v']],
    hasShiftedPositions: true,
    hasPooler: true,
    heads: { text: dense('mpnet', 'Tanh'), token: words('mpnet') },
  },
  roberta,
  'xlm-roberta': roberta,
}
