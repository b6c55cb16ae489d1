// Merging by path: tells ONNX models from safetensors checkpoints, and guards what is there already.

import path from 'node:path'
import { type ByteSink, type Directory, readJson, writeFile } from '../base/bytes.js'
import { FileError, listed } from '../base/errors.js'
import { loadOnnx, mergeOnnx } from '../index/deferred.js'
import { locate, NodeDirectory } from '../io/node/files.js'
import { LoraAdapter } from '../lora/adapter.js'
import {
  type FileAdapter,
  type MergeFilesOptions,
  mergeCheckpointFiles,
  planCheckpointFiles,
} from '../merge/node/merge.js'
import { RECORD_FILE, refuseEnding } from '../merge/node/place.js'
import type { MergeReport } from '../merge/output.js'
import type { WeightedAdapter } from '../merge/weighted.js'
import { loadAdapter, locateModel } from './model.js'

/** Options of checkpoints beside `overwrite`, `signal` and `onProgress` do nothing for ONNX models. */
export interface MergeByPathOptions extends MergeFilesOptions {
  /** Path of an .onnx or .safetensors file, or of a folder: its checkpoint, else its ONNX model. */
  base: string
  /** PEFT adapter folders or adapters, each with a weight if it is not 1. */
  adapters: FileAdapter | readonly FileAdapter[]
  /** Path of the result: a file if it ends in .onnx or .safetensors, else a folder that gets the base's other files too. */
  out: string
}

/**
 * Writes a base model with adapters folded in. All files of the result appear together.
 *
 * @throws what mergeOnnx and mergeCheckpoint of `lowrank` throw; FileError when a path leads nowhere, or `out` is not empty
 */
export async function merge(options: MergeByPathOptions): Promise<MergeReport> {
  const { base, out, adapters, ...rest } = options
  const list = Array.isArray(adapters) ? adapters : [adapters as FileAdapter]
  const onnx = await locateOnnx(base)
  return onnx === undefined
    ? mergeCheckpointFiles(base, list, out, rest)
    : mergeIntoOnnx(onnx, list, { ...options, isDry: false })
}

/** What {@link merge} would do: it computes or plans, but writes nothing. Throws as that does. */
export async function planMerge(options: MergeByPathOptions): Promise<MergePlanReport> {
  const { base, out, adapters, ...rest } = options
  const list = Array.isArray(adapters) ? adapters : [adapters as FileAdapter]
  const onnx = await locateOnnx(base)
  return onnx === undefined
    ? planCheckpointFiles(base, list, out, rest)
    : mergeIntoOnnx(onnx, list, { ...options, isDry: true })
}

/** What a merge would write and change. */
export type MergePlanReport = Pick<MergeReport, 'out' | 'tensors' | 'changed' | 'bytes'> & {
  layers: { name: string }[]
}

interface OnnxBase {
  directory: NodeDirectory
  file: string
}

/** The ONNX model that a path means; undefined when it means a checkpoint. */
export async function locateOnnx(target: string): Promise<OnnxBase | undefined> {
  const { directory, file } = await locate(target)
  if (file !== undefined) {
    if (/\.(safetensors|json|bin|pt|pth|ckpt)$/.test(file)) return undefined
    const model = await locateModel(target)
    return { directory: model.directory, file: model.onnxPath! }
  }
  const files = await directory.list()
  if (files.some((name) => /\.safetensors(\.index\.json)?$/.test(name))) return undefined
  for (const graph of ['onnx/model.onnx', 'model.onnx']) {
    if (await directory.has(graph)) return { directory, file: graph }
  }
  return undefined
}

async function mergeIntoOnnx(
  base: OnnxBase,
  adapters: readonly FileAdapter[],
  { out, overwrite = false, signal, onProgress, strict, isDry }: MergeByPathOptions & { isDry: boolean },
): Promise<MergeReport> {
  refuseEnding(out, 'onnx')
  const isFile = out.endsWith('.onnx')
  const folder = new NodeDirectory(isFile ? path.dirname(out) : out)
  const replaced = isFile ? await checkOutputFile(folder, path.basename(out)) : await checkOutput(folder, overwrite)
  const target = new OutputDirectory(folder, isDry)
  const model = await loadOnnx(base.directory, base.file)
  let report: MergeReport
  try {
    report = await mergeOnnx(model, await openAll(adapters), target, {
      strict,
      ...(signal !== undefined && { signal }),
      ...(onProgress !== undefined && { onProgress }),
      ...(isFile ? { path: path.basename(out) } : { path: base.file, companions: base.directory }),
    })
  } finally {
    await model.close()
  }
  if (isFile || isDry) return report
  for (const stale of replaced) if (!target.created.has(stale)) await folder.remove(stale)
  const record: MergeRecord = { version: 1, base: model.fileName, files: [...target.created], layers: report.layers }
  await writeFile(folder, RECORD_FILE, `${JSON.stringify(record, null, 2)}\n`)
  return report
}

/** Says that a merge wrote a folder, and which files. */
interface MergeRecord {
  version: 1
  base: string
  files: string[]
  layers: MergeReport['layers']
}

/** Reads the folders among the adapters. */
function openAll(adapters: readonly FileAdapter[]): Promise<WeightedAdapter[]> {
  return Promise.all(
    adapters.map(async (input) => {
      const isBare = typeof input === 'string' || input instanceof LoraAdapter
      const { adapter, weight = 1 } = isBare ? { adapter: input } : input
      return { adapter: typeof adapter === 'string' ? await loadAdapter(adapter) : adapter, weight }
    }),
  )
}

/** Throws FileError when the file is there. */
async function checkOutputFile(folder: NodeDirectory, file: string): Promise<string[]> {
  if (!(await folder.has(file))) return []
  throw new FileError({
    where: path.join(folder.name, file),
    what: 'exists already',
    hint: 'Choose another place, or remove it: only folders that a merge wrote can be overwritten',
  })
}

/**
 * The files of an earlier merge, which may be replaced.
 *
 * @throws FileError when the folder holds anything else
 */
async function checkOutput(folder: NodeDirectory, mayReplace: boolean): Promise<string[]> {
  const files = await folder.list()
  if (files.length === 0) return []
  const record = await readRecord(folder)
  if (record !== undefined && mayReplace) return record.files
  throw new FileError({
    where: folder.name,
    what: mayReplace ? 'not overwritten, because no merge wrote this folder' : 'exists already and is not empty',
    got: listed(files),
    hint: record === undefined ? 'Choose another place' : 'Choose another place, or overwrite it',
  })
}

/** The record of a merge into an ONNX model, if one wrote this folder. */
async function readRecord(folder: NodeDirectory): Promise<MergeRecord | undefined> {
  if (!(await folder.has(RECORD_FILE))) return undefined
  const record = (await readJson(folder, RECORD_FILE)) as Partial<MergeRecord> | null
  return Array.isArray(record?.files) ? (record as MergeRecord) : undefined
}

/** The output folder, which notes what is created, and in a dry run keeps none of it. */
class OutputDirectory implements Directory {
  readonly name: string
  readonly created = new Set<string>()
  readonly #directory: NodeDirectory
  readonly #isDry: boolean

  constructor(directory: NodeDirectory, isDry: boolean) {
    this.name = directory.name
    this.#directory = directory
    this.#isDry = isDry
  }

  list() {
    return this.#directory.list()
  }

  has(file: string) {
    return this.#directory.has(file)
  }

  open(file: string) {
    return this.#directory.open(file)
  }

  remove(file: string) {
    return this.#directory.remove(file)
  }

  async create(file: string): Promise<ByteSink> {
    this.created.add(file)
    if (!this.#isDry) return this.#directory.create(file)
    const nothing = async () => {}
    return { name: `${this.name}/${file}`, write: nothing, commit: nothing, abort: nothing }
  }
}
