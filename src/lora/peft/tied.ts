// Output embeddings and PEFT's ensure_weight_tying: tied embeddings are adapted together, by the same factors with A
// and B exchanged. PEFT saves the factors for both, but does not name the output embedding in target_modules.

import type { LoraConfig } from '../config.js'
import { targetMatcher } from '../patterns/patterns.js'

const HEADS = /(^|\.)((generator_)?lm_head|lm_head\.decoder|embed_out|predictions\.decoder|vocab_projector)$/

export function isHeadModule(module: string): boolean {
  return HEADS.test(module)
}

const EMBEDDINGS = /(^|\.)(embed_tokens|embed_in|wte|word_embeddings|shared)$/

/** Recognizes an input embedding by its usual names. Used for hints, and if the model's type does not say it. */
export function isEmbeddingModule(module: string): boolean {
  return EMBEDDINGS.test(module)
}

/** Says whether a module has a row for each token. */
export function isVocabularyModule(module: string): boolean {
  return isHeadModule(module) || isEmbeddingModule(module)
}

/** Other modules that use the embedding `shared`, and output embeddings whose names are ambiguous. */
const SHARERS = /(^|\.)((encoder|decoder)\.embed_tokens|shared|proj_out|output_projection)$/

export function adaptedMatcher(config: LoraConfig): (moduleName: string) => boolean {
  const isTarget = targetMatcher(config)
  return config.ensureWeightTying ? (name) => isTarget(name) || isHeadModule(name) || SHARERS.test(name) : isTarget
}
