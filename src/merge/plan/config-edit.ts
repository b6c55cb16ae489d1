// The changes of a base's config.json: what the merge has made of its types, of tied weights and of the head. All else
// keeps its spelling.

import { type Directory, parsePythonJson, readAll } from '../../base/bytes.js'
import type { FloatDtype } from '../../base/dtype.js'
import { FormatError, MismatchError } from '../../base/errors.js'
import { setMember } from '../../formats/json-edit.js'
import type { Meaning } from '../../peft/labels.js'

export const CONFIG_FILE = 'config.json'

/** The content of config.json. */
export interface Config {
  readonly bytes: Uint8Array
  readonly values: Readonly<Record<string, unknown>>
}

/** A change of config.json. */
export interface ConfigEdit {
  /** The ways to the parts that say that weights are tied, and must not any more. */
  readonly untied: readonly (readonly string[])[]
  readonly dtype: FloatDtype | undefined
  /** The vocabulary's size, where it is another than the base's. */
  readonly vocabulary?: number | undefined
  /** The head that the result has. */
  readonly head: HeadEdit | undefined
}

/** A head, as config.json describes it. */
export interface HeadEdit extends Meaning {
  /** The model's class with this head; undefined where it is not known. */
  readonly architecture: string | undefined
  /** How many logits it gives; undefined where the head's last layer is the base's. */
  readonly count: number | undefined
}

const TORCH_NAMES: Readonly<Record<FloatDtype, string>> = { fp32: 'float32', fp16: 'float16', bf16: 'bfloat16' }

const DTYPE_NAMES = ['dtype', 'torch_dtype'] as const

/** The model's and, where that is a part of it, the language model's, with the way to each. */
function partsOf(config: Readonly<Record<string, unknown>>): { part: Record<string, unknown>; path: string[] }[] {
  const text = config.text_config
  const isPart = typeof text === 'object' && text !== null && !Array.isArray(text)
  return [
    { part: config, path: [] },
    ...(isPart ? [{ part: text as Record<string, unknown>, path: ['text_config'] }] : []),
  ]
}

/** A dtype that config.json has and that is not this one. */
export function otherDtype(config: Readonly<Record<string, unknown>>, dtype: FloatDtype): string | undefined {
  const said = partsOf(config).flatMap(({ part }) => DTYPE_NAMES.flatMap((name) => part[name] ?? []))
  return said.map(String).find((name) => name !== TORCH_NAMES[dtype])
}

/** config.json with tie_word_embeddings, the dtype and the head as the merge has made them; all else stays. */
export function editConfig(
  content: Uint8Array,
  { untied, dtype, vocabulary, head }: ConfigEdit,
  where: string,
): string {
  let text = new TextDecoder().decode(content)
  let config: Record<string, unknown>
  try {
    config = parsePythonJson(text) as Record<string, unknown>
  } catch (cause) {
    throw new FormatError({ where, what: 'not valid JSON', cause })
  }
  const parts = partsOf(config)
  for (const way of untied) {
    text = setMember(text, [...way, 'tie_word_embeddings'], false)
    // Other versions of transformers ask the other one of the two.
    for (const { part, path } of parts) {
      if (part.tie_word_embeddings === true) text = setMember(text, [...path, 'tie_word_embeddings'], false)
    }
  }
  if (dtype !== undefined) {
    for (const { part, path } of parts) {
      for (const name of DTYPE_NAMES) if (name in part) text = setMember(text, [...path, name], TORCH_NAMES[dtype])
    }
    if (!DTYPE_NAMES.some((name) => name in config)) text = setMember(text, ['torch_dtype'], TORCH_NAMES[dtype])
  }
  if (vocabulary !== undefined) {
    for (const { part, path } of parts) {
      if ('vocab_size' in part) text = setMember(text, [...path, 'vocab_size'], vocabulary)
    }
  }
  return head === undefined ? text : withHead(text, config, head)
}

function withHead(
  text: string,
  config: Record<string, unknown>,
  { architecture, count, labels, problemType }: HeadEdit,
): string {
  let edited = architecture === undefined ? text : setMember(text, ['architectures'], [architecture])
  if (problemType !== undefined) edited = setMember(edited, ['problem_type'], problemType)
  const isOther = count !== undefined && count !== labelCount(config)
  const names = labels ?? (isOther ? Array.from({ length: count }, (_, i) => `LABEL_${i}`) : undefined)
  if (names === undefined) return edited
  edited = setMember(edited, ['id2label'], Object.fromEntries(names.map((name, i) => [i, name])))
  edited = setMember(edited, ['label2id'], Object.fromEntries(names.map((name, i) => [name, i])))
  return 'num_labels' in config ? setMember(edited, ['num_labels'], names.length) : edited
}

/** transformers takes two where config.json has none. */
function labelCount({ id2label, num_labels }: Record<string, unknown>): number {
  if (typeof id2label === 'object' && id2label !== null) return Object.keys(id2label).length
  return typeof num_labels === 'number' ? num_labels : 2
}

/** The warning about a head if the result gets no config.json. */
export function headWarning({ architecture = 'model with a head', labels }: HeadEdit): string {
  const named = labels === undefined ? '' : ` with the labels ${labels.join(', ')}`
  return `The result is a ${architecture}${named}: say so in the ${CONFIG_FILE} that it is used with, which does not go along`
}

/**
 * Joins what the adapters say of their head.
 *
 * @throws MismatchError for labels that are not as many as the head gives
 */
export function meaningOf(adapters: readonly Meaning[], count: number | undefined): Meaning {
  const told = adapters.find(({ labels, problemType }) => labels !== undefined || problemType !== undefined)
  const { labels, problemType } = told ?? { labels: undefined, problemType: undefined }
  if (labels === undefined || count === undefined || labels.length === count) return { labels, problemType }
  throw new MismatchError({
    where: 'labels',
    what: 'the adapter does not have as many labels as its head has outputs',
    expected: String(count),
    got: labels.join(', '),
  })
}

/** The values of config.json, where there is one. Throws FormatError when it is no JSON object. */
export async function readConfig(base: Directory): Promise<Readonly<Record<string, unknown>> | undefined> {
  return (await loadConfig(base))?.values
}

/** The content of config.json, where there is one. Throws FormatError when it is no JSON object. */
export async function loadConfig(base: Directory): Promise<Config | undefined> {
  if (!(await base.has(CONFIG_FILE))) return undefined
  const source = await base.open(CONFIG_FILE)
  try {
    const bytes = await readAll(source)
    const values: unknown = parsePythonJson(new TextDecoder().decode(bytes))
    if (typeof values === 'object' && values !== null && !Array.isArray(values))
      return { bytes, values: values as Record<string, unknown> }
    throw new FormatError({ where: source.name, what: 'not a JSON object' })
  } catch (cause) {
    if (!(cause instanceof SyntaxError)) throw cause
    throw new FormatError({ where: source.name, what: `not valid JSON (${cause.message})`, cause })
  } finally {
    await source.close()
  }
}
