// Finds the files of a base's folder that are copied into a result. Only listed names are copied, because a folder may
// also hold private notes.

import { type Directory, readLeniently, withSource, writeFile, writeThrough } from '../core/base/bytes.js'

/** Names from transformers 5 (VOCAB_FILES_NAMES) and older models. */
const TOKENIZERS = [
  /^(tokenizer|tokenizer\.[^/]+|tokenizer_config|special_tokens_map|added_tokens|tekken|normalizer)\.json$/,
  /^(vocab|[a-z]+[-_]vocab|vocab[-_][\w-]+|byte_maps|emoji)\.(json|txt)$/,
  /^((merges|dict)\.txt|bpe\.codes|[\w.-]+\.(model|spm|tiktoken|tokenizer|vocab))$/,
]

const FILES = [
  /^(config|generation_config|genai_config)\.json$/,
  ...TOKENIZERS,
  /^chat_template\.(jinja|json)$/,
  /^additional_chat_templates\/[^/]+\.jinja$/,
  /^((video_|image_)?(pre)?processor|audio_tokenizer|feature_extractor|processor)_config\.json$/,
  // sentence-transformers: the list of modules after the model, and these modules with their small weights
  /^(modules|config_sentence_transformers|sentence_[a-z]+_config)\.json$/,
  /^\d+_[A-Z]\w*\/(config\.json|model\.safetensors|pytorch_model\.bin)$/,
  /^(LICEN[CS]E|NOTICE|COPYING|USE_POLICY)([._-][^/]*)?$/i,
]

const FOLDERS = /^(additional_chat_templates|\d+_[A-Z]\w*)$/

/** The file in a merged folder that says how it was made. Only folders with this file are ever replaced. */
export const RECORD_FILE = 'lowrank-merge.json'

/** Files whose `auto_map` may name Python modules in the model's folder. */
const MODULE_HOLDERS = ['config.json', 'tokenizer_config.json', 'preprocessor_config.json', 'processor_config.json']

const COPY_BYTES = 1 << 20

export function isTokenizerFile(name: string): boolean {
  return TOKENIZERS.some((pattern) => pattern.test(name))
}

function isCompanion(path: string): boolean {
  return FILES.some((pattern) => pattern.test(path))
}

export interface ResultFile {
  readonly path: string
  readonly byteLength: number
  /** The folder from which the file is copied. */
  readonly from?: Directory
  /** Its path without links. */
  readonly realPath?: string | undefined
  write(to: Pick<Directory, 'create'>): Promise<void>
}

/**
 * Lists the files to copy; nothing is copied yet. `replaced` are files and folders (`onnx/`) for which the result has
 * another version. `leftOut` are the names of all other files, and of folders with a `/` at the end.
 */
export async function findBaseFiles(
  base: Directory,
  replaced: readonly string[],
  changed: readonly ResultFile[],
): Promise<{ files: ResultFile[]; leftOut: string[] }> {
  const names = await base.list()
  const takesPython = await hasModules(base)
  const copied: string[] = []
  const leftOut: string[] = []
  // Files of two tokenizers must not be mixed.
  const isOtherTokenizer = changed.some(({ path }) => isTokenizerFile(path))
  for (const name of names) {
    if (replaced.includes(name) || (isOtherTokenizer && isTokenizerFile(name))) continue
    if (isCompanion(name) || (takesPython && name.endsWith('.py'))) copied.push(name)
    else if (!name.startsWith('.') && name !== RECORD_FILE) leftOut.push(name)
  }
  for (const folder of (await base.folders?.()) ?? []) {
    if (replaced.includes(`${folder}/`) || folder.startsWith('.')) continue
    const inner = FOLDERS.test(folder) ? (await base.list(folder)).map((name) => `${folder}/${name}`) : []
    const taken = inner.filter(isCompanion)
    copied.push(...taken)
    leftOut.push(...(taken.length === 0 ? [`${folder}/`] : inner.filter((name) => !isCompanion(name))))
  }
  const files = [...changed]
  for (const name of copied) {
    if (!changed.some(({ path }) => path === name)) files.push(await copyOf(base, name))
  }
  return { files: files.sort((a, b) => (a.path < b.path ? -1 : 1)), leftOut: leftOut.sort() }
}

export async function copyOf(from: Directory, path: string): Promise<ResultFile> {
  const source = await from.open(path)
  await source.close()
  const { byteLength, realPath } = source
  return { path, byteLength, from, realPath, write: (to) => copyFile(from, path, to) }
}

export function textFile(path: string, text: string): ResultFile {
  const bytes = new TextEncoder().encode(text)
  return { path, byteLength: bytes.byteLength, write: (to) => writeFile(to, path, bytes) }
}

async function copyFile(from: Directory, path: string, to: Pick<Directory, 'create'>): Promise<void> {
  await withSource(from, path, (source) => {
    return writeThrough(to, path, async (sink) => {
      for (let at = 0; at < source.byteLength; at += COPY_BYTES) {
        await sink.write(await source.read(at, Math.min(COPY_BYTES, source.byteLength - at)))
      }
    })
  })
}

/** True if the model brings Python code. Then all Python files of its folder are copied. */
async function hasModules(base: Directory): Promise<boolean> {
  for (const holder of MODULE_HOLDERS) if ((await readLeniently(base, holder))?.auto_map !== undefined) return true
  return false
}
