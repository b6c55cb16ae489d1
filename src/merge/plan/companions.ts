// Which files of a base's folder go along with a result: what loaders read beside the weights, and the licenses. A list
// of what is taken, because a folder may hold anything, such as training scripts, other copies of the weights or
// private notes.

/** Files of tokenizers, as transformers 5 (VOCAB_FILES_NAMES) and older models name them. */
const TOKENIZERS = [
  /^(tokenizer|tokenizer\.[^/]+|tokenizer_config|special_tokens_map|added_tokens|tekken|normalizer)\.json$/,
  /^(vocab|[a-z]+[-_]vocab|vocab[-_][\w-]+|byte_maps|emoji)\.(json|txt)$/,
  /^((merges|dict)\.txt|bpe\.codes|[\w.-]+\.(model|spm|tiktoken|tokenizer|vocab))$/,
]

/** Files that go along, by their names in the folder. */
const FILES = [
  // Configuration
  /^(config|generation_config|genai_config)\.json$/,
  ...TOKENIZERS,
  // Chat templates
  /^chat_template\.(jinja|json)$/,
  /^additional_chat_templates\/[^/]+\.jinja$/,
  // Processors of images, videos and sound
  /^((video_|image_)?(pre)?processor|audio_tokenizer|feature_extractor|processor)_config\.json$/,
  // sentence-transformers: which modules follow the model, and those that follow, with their own small weights
  /^(modules|config_sentence_transformers|sentence_[a-z]+_config)\.json$/,
  /^\d+_[A-Z]\w*\/(config\.json|model\.safetensors|pytorch_model\.bin)$/,
  // Licenses
  /^(LICEN[CS]E|NOTICE|COPYING|USE_POLICY)([._-][^/]*)?$/i,
]

const FOLDERS = /^(additional_chat_templates|\d+_[A-Z]\w*)$/

/** In a folder that a merge wrote: says how. Only such a folder is ever replaced. */
export const RECORD_FILE = 'lowrank-merge.json'

/** Files that may name Python modules of the model's own: `auto_map` of transformers. */
export const MODULE_HOLDERS = [
  'config.json',
  'tokenizer_config.json',
  'preprocessor_config.json',
  'processor_config.json',
]

/** True if a file of this name belongs to a tokenizer. */
export function isTokenizerFile(name: string): boolean {
  return TOKENIZERS.some((pattern) => pattern.test(name))
}

/** True if a file goes along. `path` is relative to the folder, with `/` between the parts. */
export function isCompanion(path: string): boolean {
  return FILES.some((pattern) => pattern.test(path))
}

/** True if a folder inside the base's may hold files that go along. */
export function isCompanionFolder(name: string): boolean {
  return FOLDERS.test(name)
}

/**
 * The Python files that `auto_map` of a config names. Those of another repository (`org/name--module.Class`) are not in
 * the folder.
 */
export function namedModules(config: unknown): string[] {
  const map = isObject(config) ? config.auto_map : undefined
  if (!isObject(map)) return []
  const names = Object.values(map).flat()
  return names.flatMap((name) =>
    typeof name === 'string' && /^\w+\.\w+$/.test(name) ? `${name.split('.')[0]}.py` : [],
  )
}

/** The Python files beside a module that it imports: `from .name import …` and `from . import name`. */
export function importedModules(text: string): string[] {
  const beside = [...text.matchAll(/^\s*from\s+\.(\w+)\s+import\b/gm)].map(([, name]) => name)
  const listed = [...text.matchAll(/^\s*from\s+\.\s+import\s+([\w, ]+)/gm)].flatMap(([, names]) =>
    names.split(/[\s,]+/),
  )
  return [...beside, ...listed].filter((name) => name !== '').map((name) => `${name}.py`)
}

function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value)
}
