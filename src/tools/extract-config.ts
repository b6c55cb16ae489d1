// The config of an extracted adapter: which modules it names, so that PEFT makes layers for these and no others.

import type { Checkpoint } from '../formats/checkpoint.js'
import { type LoraConfig, resolveConfig } from '../lora/config.js'
import { isEmbeddingModule } from '../merge/plan/names/vocabulary.js'
import { isConv1dModule } from '../merge/plan/orientation.js'
import { isHeadModule } from '../peft/tied.js'
import type { NewLayer, NewValues } from './assemble.js'

/** @param config of the base */
export function extractConfig(
  layers: readonly NewLayer[],
  replacements: NewValues['replacements'],
  base: Checkpoint,
  config: Readonly<Record<string, unknown>> | undefined,
): LoraConfig {
  const modules = layers.filter(({ part }) => part.kind !== 'parameter').map(({ part }) => part.name)
  const changesEmbedding = [...modules, ...replacements.map(({ name }) => name.replace(/\.weight$/, ''))].some(
    isEmbeddingModule,
  )
  const hasHead = [...base.tensors.keys()].some((name) => isHeadModule(name.replace(/\.weight$/, '')))
  const architectures = config?.architectures
  const isCausal = Array.isArray(architectures) && /ForCausalLM|LMHeadModel/.test(String(architectures[0]))
  return resolveConfig({
    targetModules: targetsOf(modules, base),
    targetParameters: layers.filter(({ part }) => part.kind === 'parameter').map(({ part }) => part.name),
    fanInFanOut: modules.length > 0 && modules.every((name) => isConv1dModule(name, base.tensors)),
    bias: replacements.some(({ key }) => key.endsWith('.base_layer.bias')) ? 'lora_only' : 'none',
    // Without a head of its own, the model reads the embedding for its output too.
    ensureWeightTying: changesEmbedding && isCausal && !hasHead,
    ...(isCausal && { taskType: 'CAUSAL_LM' }),
  })
}

/** The ends of the names where these mean no other weight of the base; else the names. */
function targetsOf(modules: readonly string[], base: Checkpoint): string[] {
  const end = (name: string) => name.slice(name.lastIndexOf('.') + 1)
  const own = new Set(modules)
  const others = new Set(
    [...base.tensors.values()].flatMap(({ info: { name, shape } }) => {
      const module = name.replace(/\.weight$/, '')
      return shape.length > 1 && !own.has(module) ? [end(module)] : []
    }),
  )
  const ends = [...new Set(modules.map(end))].sort()
  return ends.some((name) => others.has(name)) ? [...modules] : ends
}
