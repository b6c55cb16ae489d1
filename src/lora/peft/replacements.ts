// Finds the tensors of a PEFT file that replace tensors of the base, or rows of them.

import { attempt, FormatError, type LowrankError, MismatchError, UnsupportedError } from '../../core/base/errors.js'
import type { LoraAdapter } from '../adapter.js'
import type { LoraConfig } from '../config.js'
import { moduleOf, type ReplacementView, rowsName, type TokenRowsView } from '../part.js'
import { isInsideModule } from '../patterns/patterns.js'
import { CONFIG_FILE } from './file-names.js'
import { type AdapterTensor, KEY_PREFIX, ROWS_SUFFIX, sortedByName, withoutPrefix, wrongShape } from './keys.js'
import { isHeadModule } from './tied.js'

export interface ClaimContext {
  readonly config: LoraConfig
  readonly file: string
}

type FoundKinds = ReadonlyMap<string, { readonly kind?: 'linear' | 'embedding' | 'convolution' }>

/** Embeddings, which PEFT saves whole if the vocabulary was resized, or with save_embedding_layers. */
const EMBEDDING =
  /(^decoder|(^|\.)(embed_tokens|embed_in|embed_out|wte|word_embeddings?|tok_embeddings|tokens_embed|embeddings|shared|patch_embeddings\.projection|(generator_)?lm_head|lm_loss|proj_out|output_projection|vocab_projector|predictions\.decoder))\.(weight|bias)$/

/** Buffers that a model computes from its config. Older versions saved them. */
const COMPUTED = /(^|\.)(original_inv_freq|inv_freq|position_ids|masked_bias|(cos|sin)_cached)$/

export function claimOthers(rest: readonly AdapterTensor[], found: FoundKinds, context: ClaimContext) {
  const { config, file } = context
  const replacements = new Map<string, ReplacementView<AdapterTensor>>()
  const tokenRows = new Map<string, TokenRowsView<AdapterTensor>>()
  const unclaimed: string[] = []
  const problems: LowrankError[] = []
  let hasComputed = false
  for (const info of rest) {
    const key = withoutPrefix(info.name)
    if (key?.endsWith(ROWS_SUFFIX) && key !== ROWS_SUFFIX) {
      // PEFT writes an empty tensor if the list of tokens is empty.
      if (config.trainableTokenIndices === undefined && info.shape[0] === 0) continue
      const module = key.slice(0, -ROWS_SUFFIX.length)
      const { value: indices, problems: wrong } = attempt(() => tokensOf(module, info, context))
      problems.push(...wrong)
      const part = { kind: 'token-rows', name: rowsName(module), module, tensors: { weight: info } } as const
      if (indices !== undefined) tokenRows.set(module, { ...part, indices })
      continue
    }
    if (key !== undefined && (isCopy(key, config) || isBuffer(key, config))) continue
    const origin = key === undefined ? undefined : replacementOrigin(key, info.shape, config, found)
    if (key !== undefined && origin === undefined && COMPUTED.test(key)) {
      hasComputed = true
      continue
    }
    if (key === undefined || origin === undefined) {
      unclaimed.push(info.name)
      continue
    }
    const name = baseTensor(key)
    if (replacements.has(name)) {
      problems.push(new FormatError({ where: `${file}: ${info.name}`, what: `a second tensor that replaces ${name}` }))
      continue
    }
    const part = { kind: 'replacement', name, module: moduleOf(name), key, tensors: { weight: info } } as const
    replacements.set(name, { ...part, isTrained: origin === 'trained' })
  }
  if (unclaimed.length > 0) problems.push(unclaimedError(unclaimed, file))
  const parts = [...sortedByName(replacements), ...sortedByName(tokenRows)].map(([, part]) => part)
  const notes = hasComputed ? ['tensors that the model computes itself (such as inv_freq), which are left out'] : []
  return { parts, problems, notes }
}

/** With bias "all", PEFT saves the biases of modules_to_save again, and also the base's. Neither is ever read. */
function isCopy(key: string, { bias, modulesToSave }: LoraConfig): boolean {
  const owner = /^(.+)\.(?:modules_to_save|original_module)\..*bias[^.]*$/s.exec(key)?.[1]
  return bias === 'all' && owner !== undefined && modulesToSave.some((entry) => owner.endsWith(entry))
}

/** Recognizes the buffer in which VeLoRA compresses activations for the gradient. Only training reads it. */
function isBuffer(key: string, { peftFields }: LoraConfig): boolean {
  return (peftFields.velora_config ?? null) !== null && /\.lora_velora_embed(\.|$)/.test(key)
}

/** Says why PEFT saved a tensor that replaces the base's. Returns undefined if PEFT would not load it as one. */
function replacementOrigin(
  key: string,
  shape: readonly number[],
  config: LoraConfig,
  found: FoundKinds,
): 'trained' | 'embedding' | undefined {
  if (key.includes('.lora_')) return undefined
  const base = baseTensor(key)
  const module = moduleOf(base)
  if (module === '') return undefined
  if (config.bias === 'all' && base.slice(module.length).includes('bias')) return 'trained'
  if (config.bias === 'lora_only' && base.endsWith('.bias') && found.has(module)) return 'trained'
  if (config.modulesToSave.some((entry) => isInsideModule(module, entry))) return 'trained'
  // With trained rows of a tied output embedding, PEFT also saves the bias of the wrapped module.
  if (config.bias === 'lora_only' && key.endsWith('.token_adapter.base_layer.bias')) return 'embedding'
  const isAdapted = found.get(module)?.kind === 'embedding' || (config.ensureWeightTying && isHeadModule(module))
  const isTable = base.endsWith('.weight') && shape.length === 2
  const isWhole = EMBEDDING.test(base) && (base.endsWith('.bias') ? 1 : 2) <= shape.length
  return isWhole || (isAdapted && isTable) ? 'embedding' : undefined
}

/** Adds modules, such as a new head, whose replaced tensors would otherwise not be read as trained. */
export function savedModules(adapter: LoraAdapter): readonly string[] {
  const { config } = adapter
  const layers = new Map(adapter.parts('linear', 'embedding', 'convolution').map((layer) => [layer.module, layer]))
  const missing = adapter.parts('replacement').filter(({ key, shape, isTrained }) => {
    const origin = replacementOrigin(key, shape, config, layers)
    return origin === undefined || (isTrained && origin !== 'trained')
  })
  if (missing.length === 0) return config.modulesToSave
  return [...new Set([...config.modulesToSave, ...missing.map(({ module }) => module)])]
}

function baseTensor(key: string): string {
  return key.replaceAll(/(?:\.token_adapter)?\.base_layer\./g, '.')
}

function tokensOf(name: string, info: AdapterTensor, { config, file }: ClaimContext): readonly number[] {
  const where = `${file}: ${info.name}`
  const { trainableTokenIndices } = config
  const named = Object.entries(trainableTokenIndices ?? {})
  // If the embeddings are tied, PEFT saves the head's rows too, in files with save_embedding_layers.
  const isTiedHead = isHeadModule(name) && named.length === 1
  const tokens = Array.isArray(trainableTokenIndices)
    ? trainableTokenIndices
    : named.find(([module]) => isTiedHead || name.endsWith(module))?.[1]
  if (tokens === undefined) {
    throw new MismatchError({
      where,
      what: `no layer claims this tensor: trainable_token_indices of ${CONFIG_FILE} leave its module out`,
    })
  }
  if (info.shape.length === 2 && info.shape[0] === tokens.length) return tokens
  const what = 'wrong shape for the tokens of trainable_token_indices'
  throw wrongShape(info, file, what, `(${tokens.length}, features)`)
}

function unclaimedError(names: readonly string[], file: string): FormatError | UnsupportedError {
  const unknown = names.find(
    (name) => name.startsWith(KEY_PREFIX) && name.includes('.lora_') && !/\.lora_[AB]\./.test(name),
  )
  if (unknown !== undefined) {
    return new UnsupportedError({ where: `${file}: ${unknown}`, what: 'this kind of LoRA tensor is not implemented' })
  }
  const shown = names.slice(0, 5).join(', ')
  return new FormatError({
    where: file,
    what: `no layer claims ${names.length === 1 ? 'the tensor' : `${names.length} tensors:`} ${shown}${names.length > 5 ? ', …' : ''}`,
    expected: `${KEY_PREFIX}MODULE.lora_A.weight and ${KEY_PREFIX}MODULE.lora_B.weight`,
  })
}
