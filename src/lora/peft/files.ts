// Finds, opens and writes the files of an adapter folder, as PEFT does.

import {
  type ByteSink,
  closingOnError,
  type Directory,
  readAll,
  readLeniently,
  sameBytes,
  withSource,
  writeFile,
} from '../../core/base/bytes.js'
import { FileError, listed, UnsupportedError } from '../../core/base/errors.js'
import { isObject, jsonIn } from '../../core/base/options.js'
import {
  parseSafetensorsHeader,
  type SafetensorsFile,
  type TensorBytes,
  writeSafetensors,
} from '../../files/safetensors.js'
import type { BaseRecord, LoraAdapter } from '../adapter.js'
import { PROBLEM_TYPES, type ProblemType } from '../part.js'
import { CONFIG_FILE, MARKER_FILE } from './file-names.js'

export const WEIGHTS_FILE = 'adapter_model.safetensors'
/** A pickle, which PEFT wrote before 0.6, and still writes with safe_serialization=False. */
const TORCH_FILE = 'adapter_model.bin'
const TO_SAFETENSORS = `import torch, safetensors.torch as st; st.save_file({k: v.clone().contiguous() for k, v in torch.load('${TORCH_FILE}', 'cpu', weights_only=True).items()}, '${WEIGHTS_FILE}')`

/** Even a config that lists thousands of modules by their full names has only a few hundred kB. */
const MAX_CONFIG_BYTES = 16_000_000

interface AdapterFolder {
  readonly directory: Directory
  /** The path of the adapter in its folder: '' or `NAME/`. */
  readonly path: string
}

/** Finds an adapter. PEFT saves the adapter named "default" in the folder itself, and others in subfolders. */
export async function findAdapter(directory: Directory, name?: string): Promise<AdapterFolder> {
  const hasOwn = await directory.has(CONFIG_FILE)
  if (name !== undefined && (await hasConfig(directory, name))) return { directory, path: `${name}/` }
  // The name may also mean one of several adapters in the same file.
  if (hasOwn) return { directory, path: '' }
  const folders = (await directory.folders?.()) ?? []
  const inside: string[] = []
  for (const folder of folders) if (await hasConfig(directory, folder)) inside.push(folder)
  if (name === undefined && inside.length === 1) return { directory, path: `${inside[0]}/` }
  if (inside.length === 0) {
    const files = await directory.list()
    const isEmpty = folders.length === 0 && files.length === 0
    throw new FileError({
      where: directory.name,
      what: `not an adapter folder: no ${CONFIG_FILE}`,
      ...(files.length > 0 && { got: listed(files) }),
      hint: isEmpty ? 'The folder does not exist, or it is empty' : 'Give the folder that contains adapter_config.json',
    })
  }
  throw new FileError({
    where: directory.name,
    what:
      name === undefined
        ? `no ${CONFIG_FILE}, but several adapters in folders of their own`
        : `no adapter named ${name}`,
    expected: `one of ${inside.slice(0, 10).join(', ')}${inside.length > 10 ? ', …' : ''}`,
    hint: 'Name one, or its folder',
  })
}

/** Says whether a subfolder has a config. Names come from callers, so a name that no folder can have is possible. */
async function hasConfig(directory: Directory, folder: string): Promise<boolean> {
  if (folder === '.' || folder === '..' || !/^[^/\\\0]+$/.test(folder)) return false
  return directory.has(`${folder}/${CONFIG_FILE}`)
}

export async function readConfig({ directory, path }: AdapterFolder): Promise<{ bytes: Uint8Array; file: string }> {
  return withSource(directory, path + CONFIG_FILE, async (source) => {
    return { bytes: await readAll(source, MAX_CONFIG_BYTES, 'too large for a config'), file: source.name }
  })
}

/** Opens the weights. The caller has to close the source. */
export async function openWeights({ directory, path }: AdapterFolder): Promise<SafetensorsFile> {
  if (!(await directory.has(path + WEIGHTS_FILE)) && (await directory.has(path + TORCH_FILE))) {
    throw new UnsupportedError({
      where: `${directory.name}/${path}${TORCH_FILE}`,
      what: 'a pickle, which can run code when it is opened, is never read',
      expected: WEIGHTS_FILE,
      hint: `Convert it in Python, in its folder: ${TO_SAFETENSORS}`,
    })
  }
  return closingOnError(await directory.open(path + WEIGHTS_FILE), parseSafetensorsHeader)
}

/**
 * Writes config and weights. Two files cannot be replaced at the same moment, so the old config is removed first: then
 * no folder ever mixes two adapters.
 */
export async function writeAdapterFiles(
  directory: Directory,
  tensors: readonly TensorBytes[],
  config: string,
  metadata: Readonly<Record<string, string>> = {},
): Promise<void> {
  const bytes = new TextEncoder().encode(config)
  // Read the old config before creating files: in some folders, a new file appears at once and is empty.
  const old = (await directory.has(CONFIG_FILE)) ? (await readConfig({ directory, path: '' })).bytes.slice() : undefined
  const sinks: ByteSink[] = []
  const create = async (file: string): Promise<ByteSink> => {
    const sink = await directory.create(file)
    sinks.push(sink)
    return sink
  }
  /**
   * The bytes of the old config. They are set while it is removed and the old weights are still there, to restore it
   * after an error.
   */
  let removed: Uint8Array | undefined
  try {
    const weightsSink = await create(WEIGHTS_FILE)
    let configSink = await create(CONFIG_FILE)
    await writeSafetensors(weightsSink, tensors, { format: 'pt', ...metadata })
    await configSink.write(bytes)
    if (old !== undefined && sameBytes(old, bytes)) {
      await weightsSink.commit()
      await configSink.abort()
      return
    }
    if (old !== undefined) {
      try {
        await directory.remove(CONFIG_FILE)
      } catch {
        // Browsers do not remove a file that is open for writing.
        await configSink.abort()
        await directory.remove(CONFIG_FILE)
        removed = old
        configSink = await create(CONFIG_FILE)
        await configSink.write(bytes)
      }
      removed = old
    }
    await weightsSink.commit()
    removed = undefined
    await configSink.commit()
  } catch (error) {
    // Drop them in reverse order, because the first sink may have made the folder.
    for (const sink of sinks.reverse()) await sink.abort()
    if (removed !== undefined) await writeFile(directory, CONFIG_FILE, removed)
    throw error
  }
}

/** Reads which base an adapter was trained on, as lowrank recorded it. Returns undefined if there is no such record. */
export async function readBaseRecord(directory: Directory, path = ''): Promise<BaseRecord | undefined> {
  // A damaged record is ignored: the adapter itself may be fine.
  const { base } = (await readLeniently(directory, path + MARKER_FILE)) ?? {}
  return isObject(base) ? (base as unknown as BaseRecord) : undefined
}

/**
 * The labels and the problem type of an adapter's head: what its logits mean. PEFT has no place for them. lowrank
 * stores them in the metadata of the weights file, which PEFT ignores, so that labels and weights cannot be separated.
 */
export type Meaning = Pick<LoraAdapter, 'labels' | 'problemType'>

const LABELS = 'labels'
const PROBLEM_TYPE = 'problem_type'

export function readMeaning(metadata: Readonly<Record<string, string>>): Meaning & { notes: readonly string[] } {
  const member = (name: string) => (Object.hasOwn(metadata, name) ? metadata[name] : undefined)
  const labels = listOf(member(LABELS))
  const type = member(PROBLEM_TYPE)
  const problemType = PROBLEM_TYPES.find((known): known is ProblemType => known === type)
  const notes = [
    ...(labels === undefined && member(LABELS) !== undefined
      ? ['labels in the metadata of its weights that are no list of texts']
      : []),
    ...(problemType === undefined && type !== undefined
      ? [`a problem_type in the metadata of its weights that is not known: ${type}`]
      : []),
  ]
  return { labels, problemType, notes }
}

function listOf(text: string | undefined): readonly string[] | undefined {
  const labels = jsonIn(text)
  return Array.isArray(labels) && labels.every((label) => typeof label === 'string') ? labels : undefined
}

export function meaningMetadata({ labels, problemType }: Meaning): Record<string, string> {
  return {
    ...(labels !== undefined && { [LABELS]: JSON.stringify(labels) }),
    ...(problemType !== undefined && { [PROBLEM_TYPE]: problemType }),
  }
}
