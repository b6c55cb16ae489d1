// Output embeddings, and what PEFT's ensure_weight_tying means for them: one that is tied to the input embedding is
// adapted with it, by the same factors the other way round, and PEFT saves them for both without naming the output
// embedding in target_modules.

import type { LoraConfig } from '../lora/config.js'
import { targetMatcher } from '../lora/patterns/patterns.js'

const HEADS = /(^|\.)((generator_)?lm_head|lm_head\.decoder|embed_out|predictions\.decoder|vocab_projector)$/

export function isHeadModule(module: string): boolean {
  return HEADS.test(module)
}

const EMBEDDINGS = /(^|\.)(embed_tokens|embed_in|wte|word_embeddings|shared)$/

/** Tells an input embedding by usual names: for hints, and where a model's type says nothing. */
export function isEmbeddingModule(module: string): boolean {
  return EMBEDDINGS.test(module)
}

/** Tells a module with a row for each token. */
export function isVocabularyModule(module: string): boolean {
  return isHeadModule(module) || isEmbeddingModule(module)
}

/** Other readers of the embedding `shared`, and output embeddings whose names mean other things elsewhere. */
const SHARERS = /(^|\.)((encoder|decoder)\.embed_tokens|shared|proj_out|output_projection)$/

export function adaptedMatcher(config: LoraConfig): (moduleName: string) => boolean {
  const isTarget = targetMatcher(config)
  return config.ensureWeightTying ? (name) => isTarget(name) || isHeadModule(name) || SHARERS.test(name) : isTarget
}
