// Shows the contents of an adapter, a checkpoint or an ONNX model, and how an adapter fits a base.

import type { Source } from '../core/base/bytes.js'
import { closing, type Directory, type Place } from '../core/base/bytes.js'
import { ConfigError, FileError, listed } from '../core/base/errors.js'
import { checkOptions } from '../core/base/options.js'
import { elementCount } from '../core/base/tensor.js'
import { LoraAdapter } from '../lora/adapter.js'
import type { AdapterReport } from '../lora/peft/inspect.js'
import { isCheckpointFile } from '../merge/choose-format.js'
import type { FitReport } from '../merge/fit.js'
import { type DtypeChoice, defaultGraphs } from '../model/graph-file.js'
import { INSPECT_OPTIONS } from './gen/options.js'
import type { OnnxContents } from './inspect-onnx.js'
import { openSource } from './sources.js'

/** Content of a safetensors checkpoint. */
export interface CheckpointContents {
  /** The number of parameters in all tensors. */
  params: number
  /** Paths of the files in the folder. */
  files: string[]
  /** The tensors of all files. */
  tensors: { name: string; dtype: string; shape: readonly number[] }[]
  /** The metadata of the first file. */
  metadata: Readonly<Record<string, string>>
}

/** Result of {@link inspect}. */
export type InspectReport =
  | ({ kind: 'adapter' } & AdapterReport & { fit?: FitReport })
  | ({ kind: 'checkpoint' } & CheckpointContents)
  | ({ kind: 'onnx' } & OnnxContents)

/** Options of {@link inspect}. */
export interface InspectOptions {
  /** A model that the adapter in a folder should fit: a checkpoint or an .onnx file. */
  base?: Source | undefined
  /**
   * Which graph to inspect if the folder has several. Default: the checkpoint; if there is none, the graph that
   * config.json names.
   * @flag TYPE
   */
  dtype?: DtypeChoice | undefined
}

export async function inspect(target: Source | LoraAdapter, options: InspectOptions = {}): Promise<InspectReport> {
  checkOptions(options, 'inspect', INSPECT_OPTIONS)
  if (target instanceof LoraAdapter) {
    if (options.base !== undefined) {
      throw new ConfigError({ where: 'base', what: 'only for an adapter in a folder', hint: 'Save the adapter first' })
    }
    return { kind: 'adapter', ...(await (await import('../lora/peft/inspect.js')).inspectAdapter(target)) }
  }
  // Only ranges are read, because names and shapes are a small part of a model's files.
  const { directory, file } = await openSource(target, 'target', { readsRanges: true })
  const model = await findModel(directory, file, options.dtype)
  if (model === undefined) return inspectWithBase(directory, options)
  if (options.base !== undefined) {
    throw new ConfigError({
      where: 'base',
      what: 'only an adapter can be compared with a base, and this is a model',
      got: file === undefined ? directory.name : `${directory.name}/${file}`,
    })
  }
  if (model.kind === 'checkpoint') return inspectCheckpoint(directory, model.file)
  const { inspectGraphs } = await import('./inspect-onnx.js')
  return { kind: 'onnx', ...(await inspectGraphs(directory, model.files, file === undefined)) }
}

async function findModel(
  directory: Directory,
  file: string | undefined,
  dtype: DtypeChoice | undefined,
): Promise<{ kind: 'onnx'; files: string[] } | { kind: 'checkpoint'; file: string | undefined } | undefined> {
  if (file !== undefined && /^adapter_(model\.(safetensors|bin)|config\.json)$/.test(file)) return undefined
  if (file !== undefined) return isCheckpointFile(file) ? { kind: 'checkpoint', file } : { kind: 'onnx', files: [file] }
  if (dtype !== undefined) return { kind: 'onnx', files: await defaultGraphs(directory, dtype) }
  const files = await directory.list()
  if (files.includes('adapter_config.json')) return undefined
  if (files.some((name) => /^(?!adapter_).*\.safetensors(\.index\.json)?$/.test(name)))
    return { kind: 'checkpoint', file }
  const graphs = await defaultGraphs(directory)
  if (graphs.length > 0) return { kind: 'onnx', files: graphs }
  for (const folder of (await directory.folders?.()) ?? []) {
    if (await directory.has(`${folder}/adapter_config.json`)) return undefined
  }
  throw new FileError({
    where: directory.name,
    what: 'neither an adapter nor a model',
    expected: 'adapter_config.json, model.safetensors, model.safetensors.index.json or onnx/model.onnx',
    got: files.length === 0 ? 'no files' : listed(files),
  })
}

export async function findOnnx(base: Place): Promise<string[]> {
  if (base.file !== undefined) return isCheckpointFile(base.file) ? [] : [base.file]
  const files = await base.directory.list()
  if (files.some((name) => /\.safetensors(\.index\.json)?$/.test(name))) return []
  return defaultGraphs(base.directory)
}

async function inspectWithBase(directory: Directory, { base }: InspectOptions): Promise<InspectReport> {
  const { inspectAdapter } = await import('../lora/peft/inspect.js')
  const report = await inspectAdapter(directory)
  if (base === undefined) return { kind: 'adapter', ...report }
  const opened = await openSource(base, 'base', { readsRanges: true })
  const { fitOf } = await import('../merge/fit.js')
  return { kind: 'adapter', ...report, fit: await fitOf(opened, directory, await findOnnx(opened)) }
}

async function inspectCheckpoint(directory: Directory, file: string | undefined): Promise<InspectReport> {
  return closing(await (await import('../files/checkpoint.js')).openCheckpoint(directory, file), async (checkpoint) => {
    const tensors = [...checkpoint.tensors.values()].map(({ info: { name, dtype, shape } }) => ({
      name,
      dtype,
      shape,
    }))
    return {
      kind: 'checkpoint',
      params: tensors.reduce((sum, { shape }) => sum + elementCount(shape), 0),
      files: checkpoint.shards.map(({ path }) => path),
      tensors,
      metadata: checkpoint.shards[0].file.metadata,
    }
  })
}
