// Turns older and unusual tensor names into `base_model.model.MODULE.lora_A.weight`. The variants come from PEFT's code
// (BaseTuner._remove_adapter_name_from_key, inject_adapter) and from issues about files that did not load.

import type { ByteSource } from '../../core/base/bytes.js'
import { FormatError, MismatchError, ShapeError } from '../../core/base/errors.js'
import { formatShape } from '../../core/base/tensor.js'
import type { SafetensorsFile, TensorInfo } from '../../files/safetensors.js'

export const KEY_PREFIX = 'base_model.model.'
export const ROWS_SUFFIX = '.token_adapter.trainable_tokens_delta'

export function rowsKey(name: string): string {
  return KEY_PREFIX + name + ROWS_SUFFIX
}

/** Module names are shorter. Longer names are refused because matching them takes more than linear time. */
const MAX_KEY_LENGTH = 1000

/** Wrappers that training puts around modules. PEFT and transformers remove them from names if they notice them. */
const WRAPPERS = /(^|\.)(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)(?=\.)/g
/** The prefix of torch's DistributedDataParallel around the whole PEFT model. */
const PARALLEL = /^(?:module\.)+(?=base_model\.model\.)/
/** The prefix of a PEFT model inside a PEFT model, if get_peft_model was called twice. */
const WRAPPED_TWICE = /^(?:base_model\.model\.){2,}/

/** The wrapper of a trained module in PEFT 0.3, where adapters had no names. */
const MODULES_TO_SAVE = /\.modules_to_save(\.(?:weight|bias))$/
const SAVED_WEIGHT = '.modules_to_save.weight'
/** The module that a trained module replaces. With bias "all", PEFT still saves its bias. */
const ORIGINAL = /\.original_module\.(?=(?:.+\.)?weight$)/

/** Keys that contain an adapter's name. The second group is the name, and the others are the text around it. */
const NAMED: readonly RegExp[] = [
  /^(.+\.lora_[AB])\.([^.]+)(\.(?:weight|bias))$/s,
  /^(.+\.lora_embedding_[AB])\.([^.]+)()$/s,
  /^(.+\.lora_magnitude_vector)\.(?!weight$)([^.]+)((?:\.weight)?)$/s,
  /^(.+\.trainable_tokens_delta)\.([^.]+)()$/s,
  /^(.+)\.modules_to_save\.([^.]+)(\..+)$/s,
]

export interface AdapterTensor extends TensorInfo {
  readonly source: ByteSource
}

/** Makes the error for a tensor with an unexpected shape. `what` says the problem. */
export function wrongShape({ name, shape }: AdapterTensor, file: string, what: string, expected: string): ShapeError {
  return new ShapeError({ where: `${file}: ${name}`, what, expected, got: formatShape(shape) })
}

interface Entry {
  readonly info: TensorInfo
  key: string
}

/** Gives a file's tensors the names that PEFT would give them now. Tensors are not read. Each note is a clause. */
export function normalizeKeys(file: SafetensorsFile, adapterName?: string) {
  const { source } = file
  const where = source.name
  const notes: string[] = []
  const entries = [...file.tensors.values()].map((info) => ({ info, key: info.name }))
  checkLengths(entries, where)
  takeOutWrappers(entries, notes)
  // Add a missing prefix first, because the following steps expect text in front of the module's name.
  if (entries.some(({ key }) => key.includes('.lora_')) && !entries.some(({ key }) => key.startsWith(KEY_PREFIX))) {
    rename(entries, `tensor names without the prefix ${KEY_PREFIX}`, notes, (key) => KEY_PREFIX + key)
  }
  const chosen = takeAdapter(entries, adapterName, where, notes)
  const kept = withoutCopies(chosen, notes)
  const tensors = new Map<string, AdapterTensor>()
  for (const { info, key } of kept) {
    if (tensors.has(key))
      throw new FormatError({ where: `${where}: ${info.name}`, what: `another tensor is ${key} too` })
    tensors.set(key, { ...info, name: key, source })
  }
  return { tensors, notes }
}

function checkLengths(entries: readonly Entry[], where: string): void {
  const long = entries.find(({ key }) => key.length > MAX_KEY_LENGTH)
  if (long === undefined) return
  throw new FormatError({
    where: `${where}: ${long.key.slice(0, 100)}…`,
    what: 'the name of a tensor is too long for one of an adapter',
    expected: `at most ${MAX_KEY_LENGTH} characters`,
    got: `${long.key.length}`,
  })
}

function rename(entries: readonly Entry[], note: string, notes: string[], to: (key: string) => string): void {
  let isChanged = false
  for (const entry of entries) {
    const renamed = to(entry.key)
    isChanged ||= renamed !== entry.key
    entry.key = renamed
  }
  if (isChanged) notes.push(note)
}

function takeOutWrappers(entries: readonly Entry[], notes: string[]): void {
  rename(entries, 'names of wrappers (_orig_mod, _fsdp_wrapped_module) in tensor names', notes, (key) => {
    return key.replace(WRAPPERS, '').replace(/^\./, '')
  })
  rename(entries, 'the prefix module. before tensor names', notes, (key) => key.replace(PARALLEL, ''))
  if (!entries.every(({ key }) => WRAPPED_TWICE.test(key))) return
  rename(entries, `the prefix ${KEY_PREFIX} twice before tensor names`, notes, (key) => {
    return key.replace(WRAPPED_TWICE, KEY_PREFIX)
  })
}

/** Returns the tensors of an adapter, without its name. Tensors without a name belong to every adapter. */
function takeAdapter(entries: readonly Entry[], wanted: string | undefined, where: string, notes: string[]): Entry[] {
  const present = new Set(entries.map(({ key }) => key))
  // With bias "all", PEFT saves the biases of modules_to_save under two keys. These are copies, not another spelling.
  const isCopy = (key: string) => key.includes('.modules_to_save.') && present.has(withoutName(key))
  const named = entries.filter(({ key }) => !isCopy(key) && nameIn(key) !== undefined)
  const name = chooseName(named, wanted, where)
  const chosen = entries.filter(({ key }) => isCopy(key) || [undefined, name].includes(nameIn(key)))
  if (name !== undefined) {
    rename(chosen, `the adapter’s name ${name} in tensor names`, notes, (key) => (isCopy(key) ? key : withoutName(key)))
  }
  rename(chosen, 'the wrapper modules_to_save in tensor names', notes, (key) => {
    const bare = key.replace(MODULES_TO_SAVE, '$1')
    return present.has(bare) ? key : bare
  })
  return chosen
}

/** Leaves out copies: PEFT saves trained embeddings a second time (save_embedding_layers), and weights of the base. */
function withoutCopies(entries: readonly Entry[], notes: string[]): readonly Entry[] {
  const keys = new Set(entries.map(({ key }) => key))
  const isSecond = (key: string) => key.endsWith(SAVED_WEIGHT) && keys.has(key.replace(MODULES_TO_SAVE, '$1'))
  const firsts = entries.filter(({ key }) => !isSecond(key))
  if (firsts.length < entries.length) notes.push('trained modules a second time (modules_to_save), which are left out')
  const kept = firsts.filter(({ key }) => !(ORIGINAL.test(key) && keys.has(key.replace(ORIGINAL, '.'))))
  if (kept.length < firsts.length) notes.push('copies of the base’s own weights (original_module), which are left out')
  return kept
}

function nameIn(key: string): string | undefined {
  return NAMED.map((pattern) => pattern.exec(key)?.[2]).find((name) => name !== undefined)
}

function withoutName(key: string): string {
  const pattern = NAMED.find((candidate) => candidate.test(key))
  return pattern === undefined ? key : key.replace(pattern, '$1$3')
}

function chooseName(
  keys: readonly Pick<Entry, 'key'>[],
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

export function withoutPrefix(key: string): string | undefined {
  return key.startsWith(KEY_PREFIX) ? key.slice(KEY_PREFIX.length) : undefined
}

export function sortedByName<T>(map: ReadonlyMap<string, T>): [string, T][] {
  const order = new Intl.Collator('en', { numeric: true })
  return [...map].sort(([a], [b]) => order.compare(a, b))
}
