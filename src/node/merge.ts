// Merging by path: tells ONNX models from safetensors checkpoints, and guards what is there already.

import path from 'node:path'
import { type ByteSink, type Directory, readJson, writeFile } from '../base/bytes.js'
import { FileError } from '../base/errors.js'
import { loadOnnx } from '../formats/onnx/model.js'
import { locate, NodeDirectory } from '../io/node-files.js'
import type { LoraAdapter } from '../lora/adapter.js'
import { mergeCheckpoint } from '../merge/merge-checkpoint.js'
import { mergeOnnx } from '../merge/merge-onnx.js'
import type { MergeOptions as BaseMergeOptions, MergeReport } from '../merge/output.js'
import { loadAdapter, locateModel } from './model.js'

export interface MergeByPathOptions extends BaseMergeOptions {
  /** Path of an .onnx or .safetensors file, or of a folder: its checkpoint, else its ONNX model. */
  base: string
  /** Path of a PEFT adapter folder, or an adapter. */
  adapter: string | LoraAdapter
  /** Path of the result: a file if it ends in .onnx or .safetensors, else a folder that gets the base's other files too. */
  out: string
  /** Computes and checks everything, but writes nothing. */
  dryRun?: boolean
  /** Replaces what an earlier merge wrote into the folder `out`. */
  overwrite?: boolean
}

const MARKER_FILE = 'lowrank.json'

/** Says that a merge wrote a folder, and which files. */
interface Marker {
  version: 1
  kind: 'merge'
  files: string[]
}

/**
 * Writes a base model with an adapter folded in. All files of the result appear together.
 *
 * @throws what mergeOnnx and mergeCheckpoint of `lowrank` throw; FileError when a path leads nowhere, or `out` is not empty
 */
export async function merge(options: MergeByPathOptions): Promise<MergeReport> {
  const adapter = typeof options.adapter === 'string' ? await loadAdapter(options.adapter) : options.adapter
  const base = await locateBase(options.base)
  const { directory: folder, file } = splitOutput(options.out)
  const previous = await checkOutput(folder, file, options.overwrite === true)
  const target = new OutputDirectory(folder, options.dryRun === true)
  let report: MergeReport
  if (base.kind === 'onnx') {
    const model = await loadOnnx(base.directory, base.file)
    try {
      const destination = file === undefined ? { path: base.file, companions: base.directory } : { path: file }
      report = await mergeOnnx(model, adapter, target, { ...options, ...destination })
    } finally {
      await model.close()
    }
  } else {
    const basePath = base.file ?? (file === undefined ? undefined : 'model.safetensors')
    const destination = file === undefined ? {} : { path: file }
    report = await mergeCheckpoint(base.directory, adapter, target, {
      ...options,
      ...destination,
      ...(basePath !== undefined && { basePath }),
    })
  }
  if (file === undefined && !options.dryRun) {
    for (const stale of previous) if (!target.created.has(stale)) await folder.remove(stale)
    const marker: Marker = { version: 1, kind: 'merge', files: [...target.created] }
    await writeFile(folder, MARKER_FILE, `${JSON.stringify(marker, null, 2)}\n`)
  }
  return report
}

type Base =
  | { kind: 'onnx'; directory: NodeDirectory; file: string }
  | { kind: 'checkpoint'; directory: NodeDirectory; file: string | undefined }

async function locateBase(target: string): Promise<Base> {
  const { directory, file } = await locate(target)
  if (file !== undefined) {
    if (file.endsWith('.safetensors')) return { kind: 'checkpoint', directory, file }
    const model = await locateModel(target)
    return { kind: 'onnx', directory: model.directory, file: model.onnxPath! }
  }
  const files = await directory.list()
  if (!files.some((name) => /\.safetensors(\.index\.json)?$/.test(name))) {
    for (const graph of ['onnx/model.onnx', 'model.onnx']) {
      if (await directory.has(graph)) return { kind: 'onnx', directory, file: graph }
    }
  }
  return { kind: 'checkpoint', directory, file: undefined }
}

/** A name that ends like a model file is a file; what exists as a folder is a folder whatever its name. */
function splitOutput(target: string): { directory: NodeDirectory; file: string | undefined } {
  if (!/\.(onnx|safetensors)$/.test(target)) return { directory: new NodeDirectory(target), file: undefined }
  return { directory: new NodeDirectory(path.dirname(target)), file: path.basename(target) }
}

/**
 * The files of an earlier merge that may be replaced.
 *
 * @throws FileError when there is anything else
 */
async function checkOutput(folder: NodeDirectory, file: string | undefined, mayReplace: boolean): Promise<string[]> {
  if (file !== undefined) {
    if (!(await folder.has(file))) return []
    throw new FileError({
      where: `${folder.name}/${file}`,
      what: 'the output exists already',
      hint: mayReplace
        ? 'Only folders that lowrank wrote are replaced: remove the file yourself, or choose another name'
        : 'Choose another name',
    })
  }
  const files = await folder.list()
  if (files.length === 0) return []
  const marker = (await folder.has(MARKER_FILE)) ? ((await readJson(folder, MARKER_FILE)) as Partial<Marker>) : null
  const isOurs = marker?.kind === 'merge' && Array.isArray(marker.files)
  if (isOurs && mayReplace) return marker.files!
  throw new FileError({
    where: folder.name,
    what: mayReplace
      ? 'not overwritten, because no merge of lowrank wrote this folder'
      : 'the output folder is not empty',
    got: files.slice(0, 5).join(', ') + (files.length > 5 ? `, … (${files.length} files)` : ''),
    hint: isOurs ? 'Overwrite the merge in it, or name another folder' : 'Name another folder',
  })
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
