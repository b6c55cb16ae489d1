// Modules with a row for each token, by usual names: for hints, and where a model's type says nothing.

import { isHeadModule } from '../../../peft/tied.js'

const EMBEDDINGS = /(^|\.)(embed_tokens|embed_in|wte|word_embeddings|shared)$/

export function isEmbeddingModule(module: string): boolean {
  return EMBEDDINGS.test(module)
}

export function isVocabularyModule(module: string): boolean {
  return isHeadModule(module) || isEmbeddingModule(module)
}
