// DeBERTa, and DeBERTa-v3 under the type of v2.

import type { Config, ModelType, ModelTypes } from './family.js'
import { pooled, words } from './heads.js'

const text = ({ pooler_hidden_act: activation = 'gelu' }: Config) =>
  activation === 'gelu' ? pooled('deberta', 'pooler.dense', 'Gelu') : undefined

const deberta: ModelType = { heads: { text, token: words('deberta') } }

export const TYPES: ModelTypes = { deberta, 'deberta-v2': deberta }
