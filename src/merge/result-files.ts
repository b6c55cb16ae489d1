// Lists the files of a result besides weights: copies from the base, a new config.json, and the adapters' chat template
// and tokenizer.

import { type Directory, readLeniently } from '../core/base/bytes.js'
import { objectOf } from '../core/base/options.js'
import { LoraAdapter } from '../lora/adapter.js'
import { readChatTemplate, TEMPLATE_FILE } from '../lora/peft/file-names.js'
import { copyOf, findBaseFiles, isTokenizerFile, type ResultFile, textFile } from './base-files.js'
import type { PlanInput } from './parts.js'
import { CONFIG_FILE } from './plan/config-edit.js'
import type { MergeAdapter } from './weighted.js'

/** The tokens of a tokenizer, by text, and the token that ends texts. */
interface Tokens {
  readonly ids: ReadonlyMap<string, number>
  readonly eos: string | undefined
}

const TOKENIZER_CONFIG = 'tokenizer_config.json'

/** Special tokens in chat templates, such as `<|im_start|>` and `<start_of_turn>`. */
const MARKERS = /<\|[^|<>{}\s]{1,40}\|>|<[a-z]+(?:_[a-z]+)+>/g

/** @param replaced files and folders (`onnx/`) of the base for which the result has another version */
export async function resultFiles(
  { base: { directory }, adapters, sign, weightsOnly }: PlanInput,
  replaced: readonly string[],
  config: string | undefined,
  vocabulary?: number,
) {
  if (weightsOnly) return { files: [], leftOut: [], warnings: [] }
  const folders = sign === -1 ? [] : adapters.map(({ adapter }) => adapter)
  const { files, warnings, template } = await adapterTexts(directory, folders, vocabulary)
  const changed = config === undefined ? files : [...files, textFile(CONFIG_FILE, config)]
  const found = await findBaseFiles(directory, replaced, changed)
  // transformers.js reads the chat template only from tokenizer_config.json.
  const at = template === undefined ? -1 : found.files.findIndex(({ path }) => path === TOKENIZER_CONFIG)
  const settings = at < 0 ? undefined : await readLeniently(found.files[at].from ?? directory, TOKENIZER_CONFIG)
  if (settings !== undefined && settings.chat_template !== template) {
    found.files[at] = textFile(TOKENIZER_CONFIG, JSON.stringify({ ...settings, chat_template: template }, null, 2))
  }
  return { ...found, warnings }
}

/** An adapter's tokenizer is taken if it has tokens that the base's lacks, or ends texts with another token. */
async function adapterTexts(base: Directory, adapters: readonly MergeAdapter[], vocabulary: number | undefined) {
  const files: ResultFile[] = []
  const warnings: string[] = []
  const baseTokens = await tokensOf(base)
  const owners: { folder: Directory; tokens: Tokens }[] = []
  for (const folder of adapters) {
    if (folder instanceof LoraAdapter) continue
    const tokens = await tokensOf(folder)
    if (tokens !== undefined && isOther(tokens, baseTokens)) owners.push({ folder, tokens })
  }
  let tokens = baseTokens
  const isOne = owners.every((owner) => !isOther(owner.tokens, owners[0].tokens))
  if (owners.length > 0 && isOne) {
    const [{ folder }] = owners
    tokens = owners[0].tokens
    for (const name of await folder.list()) if (isTokenizerFile(name)) files.push(await copyOf(folder, name))
    if (baseTokens !== undefined) warnings.push("the tokenizer is the adapter's: it has other tokens than the base's")
    const largest = [...tokens.ids.values()].reduce((most, id) => Math.max(most, id), 0)
    if (vocabulary !== undefined && largest >= vocabulary) {
      warnings.push(
        `the adapter's tokenizer has tokens up to number ${largest}, but the embedding has ${vocabulary} rows: save the adapter with its embeddings (save_embedding_layers=True)`,
      )
    }
  } else if (owners.length > 1)
    warnings.push('the adapters have different tokenizers: the result keeps that of the base')
  const templates = new Set<string>()
  for (const adapter of adapters) {
    const chatTemplate = adapter instanceof LoraAdapter ? adapter.chatTemplate : await readChatTemplate(adapter, '')
    if (chatTemplate !== undefined) templates.add(chatTemplate)
  }
  const [template, ...others] = templates
  if (others.length > 0) warnings.push('the adapters have different chat templates: the result gets none of them')
  const before = template === undefined ? undefined : await readChatTemplate(base, '')
  if (template === undefined || others.length > 0) return { files, warnings }
  if (template === before) return { files, warnings, template }
  files.push(textFile(TEMPLATE_FILE, template))
  if (before !== undefined) {
    warnings.push(`${TEMPLATE_FILE} is the adapter's: it was trained with another chat template than the base's`)
  }
  const unknown = [...new Set(template.match(MARKERS))].filter((marker) => tokens?.ids.has(marker) === false)
  if (unknown.length > 0) {
    warnings.push(
      `the chat template writes ${unknown.join(', ')}, which the tokenizer has not as tokens: put the tokenizer that the adapter was trained with into the result`,
    )
  }
  return { files, warnings, template }
}

function isOther(tokens: Tokens, base: Tokens | undefined): boolean {
  if (base === undefined) return true
  if (tokens.eos !== undefined && tokens.eos !== base.eos) return true
  for (const [text, id] of tokens.ids) if (base.ids.get(text) !== id) return true
  return false
}

async function tokensOf(folder: Directory): Promise<Tokens | undefined> {
  const tokenizer = await readLeniently(folder, 'tokenizer.json')
  const added = await readLeniently(folder, 'added_tokens.json')
  const config = await readLeniently(folder, TOKENIZER_CONFIG)
  if (tokenizer === undefined && added === undefined) return undefined
  const ids = new Map<string, number>()
  const add = (text: unknown, id: unknown) => {
    if (typeof text === 'string' && typeof id === 'number') ids.set(text, id)
  }
  const model = objectOf(tokenizer?.model).vocab
  if (Array.isArray(model)) for (const [id, entry] of model.entries()) add(Array.isArray(entry) ? entry[0] : entry, id)
  else for (const [text, id] of Object.entries(objectOf(model))) add(text, id)
  for (const [text, id] of Object.entries(added ?? {})) add(text, id)
  for (const [id, token] of Object.entries(objectOf(config?.added_tokens_decoder))) {
    add(objectOf(token).content, Number(id))
  }
  const listed = tokenizer?.added_tokens
  for (const token of Array.isArray(listed) ? listed : []) add(objectOf(token).content, objectOf(token).id)
  const eos = config?.eos_token
  const text = typeof eos === 'string' ? eos : objectOf(eos).content
  return { ids, eos: typeof text === 'string' ? text : undefined }
}
