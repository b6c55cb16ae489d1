// Merging from paths to paths: tells ONNX models from safetensors checkpoints, and guards what is there already.

import path from 'node:path'
import { type ByteSink, type Directory, readJson, writeFile } from '../base/bytes.js'
import { FileError, listed } from '../base/errors.js'
import { openAdapter } from '../index/adapters.js'
import { otherBaseOf } from '../index/base-name.js'
import { findOnnx } from '../index/inspect.js'
import { planCheckpoint } from '../index/merge.js'
import type { AdapterToMerge, MergeOptions } from '../index/merge-options.js'
import type { PathMerging } from '../index/path-merging.js'
import { openSource } from '../index/sources.js'
import type { RemoteOptions } from '../io/hub/directory.js'
import type { Located } from '../io/locate.js'
import { NodeDirectory } from '../io/node/files.js'
import type { LoraAdapter } from '../lora/adapter.js'
import { type FileAdapter, mergeCheckpointFiles, planCheckpointFiles } from '../merge/node/merge.js'
import { RECORD_FILE, refuseEnding } from '../merge/node/place.js'
import { unmergeCheckpointFiles } from '../merge/node/unmerge.js'
import type { MergeReport } from '../merge/output.js'
import type { WeightedAdapter } from '../merge/weighted.js'
import { bringAdapter, bringCheckpoint } from './bring.js'

export const merge: PathMerging['merge'] = async (options) => {
  const { base, out, adapters, ...rest } = options
  const located = await openSource(base, 'base', remote(options))
  const onnx = await findOnnx(located)
  const warnings = await baseWarnings(located, adapters)
  if (onnx !== undefined)
    return warned(await mergeIntoOnnx({ ...located, file: onnx }, { ...options, isDry: false }), warnings)
  const from = await bringCheckpoint(base, located)
  return warned(await mergeCheckpointFiles(from, await fileAdapters(options), out, rest), warnings)
}

/** For ONNX models it computes, but writes nothing. */
export const planMerge: PathMerging['planMerge'] = async (options) => {
  const { base, out, adapters, ...rest } = options
  const located = await openSource(base, 'base', { ...remote(options), readsRanges: true })
  const onnx = await findOnnx(located)
  const warnings = await baseWarnings(located, adapters)
  if (onnx !== undefined) {
    const whole = await openSource(base, 'base', remote(options))
    return warned(await mergeIntoOnnx({ ...whole, file: onnx }, { ...options, isDry: true }), warnings)
  }
  // A plan reads the head of each file: nothing of a base elsewhere has to come.
  if (!(located.directory instanceof NodeDirectory)) {
    return warned(await planCheckpoint(located, options, out), warnings)
  }
  return warned(await planCheckpointFiles(base, await fileAdapters(options), out, rest), warnings)
}

export const unmerge: PathMerging['unmerge'] = async (options) => {
  const { merged, adapters: _, out, original, ...rest } = options
  const bring = async (source: string, where: string) =>
    bringCheckpoint(source, await openSource(source, where, remote(options)))
  const from = await bring(merged, 'merged')
  const before = original === undefined ? undefined : await bring(original, 'original')
  return unmergeCheckpointFiles(from, await fileAdapters(options), out, { ...rest, original: before })
}

/** What to tell of adapters that name another base. */
async function baseWarnings({ directory }: Located, given: MergeOptions['adapters']): Promise<string[]> {
  const told = await Promise.all(
    (Array.isArray(given) ? given : [given]).map(async (one: AdapterToMerge) => {
      const { adapter } = withWeight(one)
      if (typeof adapter !== 'string') return undefined
      return otherBaseOf({ name: adapter, directory: (await openSource(adapter, 'adapters')).directory }, directory)
    }),
  )
  return told.filter((warning) => warning !== undefined)
}

function warned<R extends object>(report: R, more: readonly string[]): R {
  if (more.length === 0) return report
  const { warnings = [] } = report as { warnings?: readonly string[] }
  return { ...report, warnings: [...warnings, ...more] }
}

function remote({ signal }: Pick<MergeOptions, 'signal'>): RemoteOptions {
  return signal === undefined ? {} : { signal }
}

interface OnnxBase {
  directory: Directory
  file: string
}

/** What merging by path reads itself becomes a path; other adapters come into memory. */
function fileAdapters(options: Pick<MergeOptions, 'adapters' | 'signal'>): Promise<FileAdapter[]> {
  const { adapters: given } = options
  const list = (Array.isArray(given) ? given : [given]) as AdapterToMerge[]
  return Promise.all(
    list.map(async (one): Promise<FileAdapter> => {
      const { adapter, weight } = withWeight(one)
      if (typeof adapter !== 'string') return { adapter: await openAdapter(adapter, 'adapters'), weight }
      const { directory } = await openSource(adapter, 'adapters', remote(options))
      return { adapter: await bringAdapter(adapter, directory), weight }
    }),
  )
}

function withWeight(one: AdapterToMerge): Exclude<AdapterToMerge, LoraAdapter | string | Directory | Iterable<File>> {
  return typeof one === 'object' && 'adapter' in one ? one : { adapter: one }
}

async function mergeIntoOnnx(
  base: OnnxBase,
  {
    adapters,
    out,
    overwrite = false,
    signal,
    onProgress,
    strict,
    isDry,
  }: MergeOptions & { out: string; isDry: boolean },
): Promise<MergeReport> {
  refuseEnding(out, 'onnx')
  const isFile = out.endsWith('.onnx')
  const folder = new NodeDirectory(isFile ? path.dirname(out) : out)
  const replaced = isFile ? await checkOutputFile(folder, path.basename(out)) : await checkOutput(folder, overwrite)
  const target = new OutputDirectory(folder, isDry)
  const { loadOnnx } = await import('../formats/onnx/model.js')
  const { mergeOnnx } = await import('../merge/onnx/merge-onnx.js')
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

/** All adapters in memory. */
function openAll(given: MergeOptions['adapters']): Promise<WeightedAdapter[]> {
  const list = (Array.isArray(given) ? given : [given]) as AdapterToMerge[]
  return Promise.all(
    list.map(async (one) => {
      const { adapter, weight = 1 } = withWeight(one)
      return { adapter: await openAdapter(adapter, 'adapters'), weight }
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
