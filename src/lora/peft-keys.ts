// Older and odder spellings of an adapter's tensor names, as PEFT spells them now: `base_model.model.MODULE.lora_A.weight`. Which ones
// occur is taken from PEFT's own code (BaseTuner._remove_adapter_name_from_key, inject_adapter) and from issues that files caused.

import { FormatError, MismatchError } from '../base/errors.js'
import type { SafetensorsFile, TensorInfo } from '../formats/safetensors.js'

export const KEY_PREFIX = 'base_model.model.'

/** Modules that training wraps others in; PEFT and transformers take them out of names, when they see them. */
const WRAPPERS = /(^|\.)(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)(?=\.)/g
/** torch's DistributedDataParallel around the whole PEFT model. */
const PARALLEL = /^(?:module\.)+(?=base_model\.model\.)/
/** A PEFT model in a PEFT model: get_peft_model was called twice. */
const WRAPPED_TWICE = /^(?:base_model\.model\.){2,}/

/** A trained module's wrapper before adapters had names: PEFT 0.3. */
const MODULES_TO_SAVE = /\.modules_to_save(\.(?:weight|bias))$/
const SAVED_WEIGHT = '.modules_to_save.weight'
/** The module that the trained one stands in for. Its bias PEFT still saves with bias "all". */
const ORIGINAL = /\.original_module\.(?=(?:.+\.)?weight$)/

/** Where a state dict has an adapter's name: after the part before it, and before the part after it. */
const NAMED: readonly RegExp[] = [
  /^(.+\.lora_[AB])\.([^.]+)(\.(?:weight|bias))$/s,
  /^(.+\.lora_embedding_[AB])\.([^.]+)()$/s,
  /^(.+\.lora_magnitude_vector)\.(?!weight$)([^.]+)((?:\.weight)?)$/s,
  /^(.+\.trainable_tokens_delta)\.([^.]+)()$/s,
  /^(.+)\.modules_to_save\.([^.]+)(\..+)$/s,
]

export interface NormalizedFile {
  readonly file: SafetensorsFile
  /** What was spelled otherwise, one clause each. */
  readonly notes: readonly string[]
}

/**
 * Gives a file's tensors the names that PEFT would give them now. Tensors stay where they are.
 *
 * @param adapterName which one to take from a file with several
 * @throws MismatchError when the file holds several adapters and none is chosen, or has no such adapter; FormatError when two tensors
 *   would get one name
 */
export function normalizeKeys(file: SafetensorsFile, adapterName?: string): NormalizedFile {
  const where = file.source.name
  const notes: string[] = []
  const keys = [...file.tensors.values()].map((info) => ({ info, key: info.name }))
  const change = (note: string, rename: (key: string) => string) => {
    let isChanged = false
    for (const entry of keys) {
      const renamed = rename(entry.key)
      isChanged ||= renamed !== entry.key
      entry.key = renamed
    }
    if (isChanged) notes.push(note)
  }
  change('names of wrappers (_orig_mod, _fsdp_wrapped_module) in tensor names', (key) => {
    return key.replace(WRAPPERS, '').replace(/^\./, '')
  })
  change('the prefix module. before tensor names', (key) => key.replace(PARALLEL, ''))
  if (keys.every(({ key }) => WRAPPED_TWICE.test(key))) {
    change(`the prefix ${KEY_PREFIX} twice before tensor names`, (key) => key.replace(WRAPPED_TWICE, KEY_PREFIX))
  }
  const present = new Set(keys.map(({ key }) => key))
  // With bias "all" PEFT saves the biases of modules_to_save under both keys: these are no other spelling.
  const isCopy = (key: string) => key.includes('.modules_to_save.') && present.has(withoutName(key))
  const named = keys.filter(({ key }) => !isCopy(key))
  const name = chooseName(named, adapterName, where)
  const chosen =
    name === undefined ? keys : keys.filter(({ key }) => isCopy(key) || [undefined, name].includes(nameIn(key)))
  if (name !== undefined && named.some(({ key }) => nameIn(key) !== undefined)) {
    change(`the adapter’s name ${name} in tensor names`, (key) => (isCopy(key) ? key : withoutName(key)))
  }
  change('the wrapper modules_to_save in tensor names', (key) => {
    const bare = key.replace(MODULES_TO_SAVE, '$1')
    return present.has(bare) ? key : bare
  })
  const own = new Set(chosen.map(({ key }) => key))
  // With save_embedding_layers PEFT saves a trained embedding a second time.
  const isSecond = (key: string) => key.endsWith(SAVED_WEIGHT) && own.has(key.replace(MODULES_TO_SAVE, '$1'))
  const firsts = chosen.filter(({ key }) => !isSecond(key))
  if (firsts.length < chosen.length) notes.push('trained modules a second time (modules_to_save), which are left out')
  const kept = firsts.filter(({ key }) => !(ORIGINAL.test(key) && own.has(key.replace(ORIGINAL, '.'))))
  if (kept.length < firsts.length) notes.push('copies of the base’s own weights (original_module), which are left out')
  if (kept.some(({ key }) => key.includes('.lora_')) && !kept.some(({ key }) => key.startsWith(KEY_PREFIX))) {
    change(`tensor names without the prefix ${KEY_PREFIX}`, (key) => KEY_PREFIX + key)
  }
  if (notes.length === 0) return { file, notes }

  const tensors = new Map<string, TensorInfo>()
  for (const { info, key } of kept) {
    if (tensors.has(key))
      throw new FormatError({ where: `${where}: ${info.name}`, what: `another tensor is ${key} too` })
    tensors.set(key, { ...info, name: key })
  }
  return { file: { ...file, tensors }, notes }
}

function nameIn(key: string): string | undefined {
  return NAMED.map((pattern) => pattern.exec(key)?.[2]).find((name) => name !== undefined)
}

function withoutName(key: string): string {
  const pattern = NAMED.find((candidate) => candidate.test(key))
  return pattern === undefined ? key : key.replace(pattern, '$1$3')
}

function chooseName(
  keys: readonly { readonly key: string }[],
  wanted: string | undefined,
  where: string,
): string | undefined {
  const names = [...new Set(keys.flatMap(({ key }) => nameIn(key) ?? []))].sort()
  if (names.length === 0) return undefined
  const chosen = wanted ?? (names.length === 1 ? names[0] : undefined)
  if (chosen !== undefined && names.includes(chosen)) return chosen
  throw new MismatchError({
    where,
    what: chosen === undefined ? 'holds several adapters' : `holds no adapter named ${chosen}`,
    expected: `one of ${names.slice(0, 10).join(', ')}`,
    hint: 'Choose one by its name',
  })
}
