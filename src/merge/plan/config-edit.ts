// Edits config.json of the base. Everything else in the file keeps its spelling.

import { type Directory, parsePythonJson, withText } from '../../core/base/bytes.js'
import type { FloatDtype } from '../../core/base/dtype.js'
import { FormatError, MismatchError } from '../../core/base/errors.js'
import { isObject, objectOf } from '../../core/base/options.js'
import { setMember } from '../../files/json.js'
import type { Meaning } from '../../lora/peft/files.js'
import { requireLabelCount } from '../../lora/requirements.js'
import { graphFile } from '../../model/graph-file.js'

export const CONFIG_FILE = 'config.json'

export type ModelConfig = Readonly<Record<string, unknown>>

export interface Config {
  readonly text: string
  readonly values: ModelConfig
}

export interface ConfigEdit {
  /** The paths of the parts of the config that say that weights are tied, and must not say so any more. */
  readonly untied: readonly (readonly string[])[]
  readonly dtype: FloatDtype | undefined
  readonly vocabulary: number | undefined
  readonly head: HeadEdit | undefined
  /** The graphs of the result, which the config describes for transformers.js. */
  readonly graphs?: readonly WrittenGraph[]
}

export interface HeadEdit extends Meaning {
  /** The model class with this head, if it is known. */
  readonly architecture: string | undefined
  readonly count: number | undefined
}

const TORCH_NAMES: Readonly<Record<FloatDtype, string>> = { fp32: 'float32', fp16: 'float16', bf16: 'bfloat16' }

/** The part of config.json for transformers.js: the type of the graph, and the number of its data files. */
const HUB_MEMBER = 'transformers.js_config'

const DTYPE_NAMES = ['dtype', 'torch_dtype'] as const

/** Returns the config of the model and, if the language model is a part of it, its config too, each with its path. */
function partsOf(config: ModelConfig): { part: ModelConfig; path: string[] }[] {
  const { text_config: text } = config
  return [{ part: config, path: [] }, ...(isObject(text) ? [{ part: text, path: ['text_config'] }] : [])]
}

export function editConfig(
  { text: original, values: config }: Config,
  { untied, dtype, vocabulary, head, graphs }: ConfigEdit,
): string {
  let text = original
  const replace = (name: string, value: unknown, isMeant = (part: ModelConfig) => name in part) => {
    for (const { part, path } of partsOf(config)) if (isMeant(part)) text = setMember(text, [...path, name], value)
  }
  for (const way of untied) {
    text = setMember(text, [...way, 'tie_word_embeddings'], false)
    // Change both: some versions of transformers read the one, some the other.
    replace('tie_word_embeddings', false, (part) => part.tie_word_embeddings === true)
  }
  if (dtype !== undefined) {
    for (const name of DTYPE_NAMES) replace(name, TORCH_NAMES[dtype])
    if (!DTYPE_NAMES.some((name) => name in config)) text = setMember(text, ['torch_dtype'], TORCH_NAMES[dtype])
  }
  if (vocabulary !== undefined) replace('vocab_size', vocabulary)
  if (head !== undefined) text = withHead(text, config, head)
  return graphs === undefined ? text : editForHub(text, config, graphs)
}

function withHead(text: string, config: ModelConfig, head: HeadEdit): string {
  const { architecture, count, labels, problemType } = head
  let edited = architecture === undefined ? text : setMember(text, ['architectures'], [architecture])
  if (problemType !== undefined) edited = setMember(edited, ['problem_type'], problemType)
  const isOther = count !== undefined && count !== labelCount(config)
  const names = labels ?? (isOther ? Array.from({ length: count }, (_, i) => `LABEL_${i}`) : undefined)
  if (names === undefined) return edited
  edited = setMember(edited, ['id2label'], Object.fromEntries(names.map((name, i) => [i, name])))
  edited = setMember(edited, ['label2id'], Object.fromEntries(names.map((name, i) => [name, i])))
  return 'num_labels' in config ? setMember(edited, ['num_labels'], names.length) : edited
}

/** Returns the number of labels. Without a number in config.json, transformers takes 2. */
function labelCount({ id2label, num_labels }: ModelConfig): number {
  if (typeof id2label === 'object' && id2label !== null) return Object.keys(id2label).length
  return typeof num_labels === 'number' ? num_labels : 2
}

export interface WrittenGraph {
  readonly path: string
  /** How many files hold the graph's weights: NAME_data, NAME_data_1, … */
  readonly dataFiles: number
}

function editForHub(text: string, values: ModelConfig, graphs: readonly WrittenGraph[]): string {
  const before = objectOf(values[HUB_MEMBER])
  const edited: Record<string, unknown> = { ...before }
  const withData = graphs.filter(({ dataFiles }) => dataFiles > 0)
  if (withData.length > 0) {
    const entries = withData.map(({ path, dataFiles }) => [path.slice(path.lastIndexOf('/') + 1), dataFiles])
    edited.use_external_data_format = Object.fromEntries(entries)
  } else delete edited.use_external_data_format
  const dtypes = graphs.map(({ path }) => graphFile(path).dtype)
  const [first] = dtypes
  // If config.json names no type, transformers.js takes fp32, or q8 in browsers without a GPU. So the type is needed
  // only if the base names one, or if a graph is not fp32.
  const isTold = before.dtype !== undefined || dtypes.some((dtype) => dtype !== 'fp32')
  if (isTold && first !== undefined && dtypes.every((dtype) => dtype === first)) edited.dtype = first
  if (JSON.stringify(edited) === JSON.stringify(before)) return text
  return setMember(text, [HUB_MEMBER], edited)
}

/**
 * If the result gets no config.json, returns warnings about the edits that the user has to make. Throws MismatchError
 * if the edit would untie embeddings.
 */
export function withoutConfig({ untied, head }: ConfigEdit, weightsOnly: boolean, where: string): string[] {
  if (untied.length > 0) {
    throw new MismatchError({
      where,
      what: `embeddings cannot be untied without a ${CONFIG_FILE}, which must say so`,
      ...(weightsOnly && { got: 'a result without one' }),
      hint: `Keep them tied (\`tied: 'keep'\`), or ${weightsOnly ? 'write a whole folder' : 'add the file'}`,
    })
  }
  if (head === undefined) return []
  const { architecture = 'model with a head', labels } = head
  const named = labels === undefined ? '' : ` with the labels ${labels.join(', ')}`
  return [
    `The result is a ${architecture}${named}: say so in the ${CONFIG_FILE} that it is used with, which does not go along`,
  ]
}

export function meaningOf(
  adapters: readonly { readonly adapter: { readonly meaning: Meaning } }[],
  count: number | undefined,
): Meaning {
  const meanings = adapters.map(({ adapter }) => adapter.meaning)
  const told = meanings.find(({ labels, problemType }) => labels !== undefined || problemType !== undefined)
  const { labels, problemType } = told ?? { labels: undefined, problemType: undefined }
  requireLabelCount(labels, count)
  return { labels, problemType }
}

export async function loadConfig(base: Directory): Promise<Config | undefined> {
  if (!(await base.has(CONFIG_FILE))) return undefined
  return withText(base, CONFIG_FILE, (text) => {
    const values = parsePythonJson(text)
    if (isObject(values)) return { text, values }
    throw new FormatError({ where: `${base.name}/${CONFIG_FILE}`, what: 'not a JSON object' })
  })
}
