// What a path holds: an adapter, a checkpoint or an ONNX model, and how an adapter fits a base.

import { ConfigError, FileError, listed } from '../base/errors.js'
import { elementCount } from '../base/tensor.js'
import { openCheckpoint } from '../formats/checkpoint.js'
import { loadOnnx } from '../index/deferred.js'
import { locate, type NodeDirectory } from '../io/node/files.js'
import type { FitReport } from '../merge/fit.js'
import { fitCheckpoint } from '../merge/plan/fit.js'
import { openAdapter } from '../peft/adapter-folder.js'
import type { AdapterReport } from '../peft/inspect.js'
import { inspectAdapterFolder } from '../peft/inspect-folder.js'
import { locateOnnx } from './merge.js'

/** What a safetensors checkpoint holds. */
export interface CheckpointContents {
  /** Numbers in all tensors. */
  params: number
  /** Names inside the folder. */
  files: string[]
  /** Of all files. */
  tensors: { name: string; dtype: string; shape: readonly number[] }[]
  /** Of the first file. */
  metadata: Readonly<Record<string, string>>
}

/** What an ONNX model takes, gives, and has to adapt. */
export interface OnnxReport {
  /** Names of the graph's inputs. */
  inputs: string[]
  /** Names of the graph's outputs. */
  outputs: string[]
  /** Linear layers by module name: what targetModules can name. */
  linears: { name: string; kind: 'matmul' | 'gemm' | 'quantized'; d: number; k: number; isHead: boolean }[]
}

/** What {@link inspect} found, by kind. */
export type InspectReport =
  | ({ kind: 'adapter' } & AdapterReport & { fit?: FitReport })
  | ({ kind: 'checkpoint' } & CheckpointContents)
  | ({ kind: 'onnx' } & OnnxReport)

/** How an adapter is looked at. */
export interface InspectOptions {
  /** A model that the adapter is held against: as `base` of {@link merge}. */
  base?: string | undefined
  /** Reads the base's weights for each layer's ‖s·B·A‖ / ‖W‖. Default false. */
  relativeChange?: boolean | undefined
  /** Counts targets and patterns of the config that match nothing as problems. Default false: warnings. */
  strict?: boolean | undefined
}

/**
 * Looks at an adapter folder, a safetensors file or checkpoint, an .onnx file, or a folder with one of them. An adapter that
 * cannot be loaded is reported with all its problems, and what is sound of it, as far as its files can be read.
 *
 * @throws FileError when there is nothing, or none of these; FormatError when it is damaged; what inspecting an adapter folder
 *   throws; ConfigError for options of adapters with a model
 */
export async function inspect(target: string, options: InspectOptions = {}): Promise<InspectReport> {
  const { directory, file } = await locate(target)
  const model = await findModel(directory, file)
  if (model === undefined) return inspectWithBase(directory, options)
  if (options.base !== undefined) {
    throw new ConfigError({ where: 'base', what: 'an adapter is held against a base, not a model', got: target })
  }
  return model.kind === 'onnx' ? inspectOnnx(directory, model.file) : inspectCheckpoint(directory, model.file)
}

/** The model that a path means; undefined when it means an adapter. */
async function findModel(
  directory: NodeDirectory,
  file: string | undefined,
): Promise<{ kind: 'onnx'; file: string } | { kind: 'checkpoint'; file: string | undefined } | undefined> {
  if (file !== undefined && /^adapter_(model\.(safetensors|bin)|config\.json)$/.test(file)) return undefined
  if (file !== undefined)
    return { kind: /\.(safetensors|json|bin|pt|pth|ckpt)$/.test(file) ? 'checkpoint' : 'onnx', file }
  const files = await directory.list()
  if (files.includes('adapter_config.json')) return undefined
  if (files.some((name) => /^(?!adapter_).*\.safetensors(\.index\.json)?$/.test(name)))
    return { kind: 'checkpoint', file }
  for (const graph of ['onnx/model.onnx', 'model.onnx']) {
    if (await directory.has(graph)) return { kind: 'onnx', file: graph }
  }
  for (const folder of await directory.folders()) {
    if (await directory.has(`${folder}/adapter_config.json`)) return undefined
  }
  throw new FileError({
    where: directory.name,
    what: 'neither an adapter nor a model',
    expected: 'adapter_config.json, model.safetensors, model.safetensors.index.json or onnx/model.onnx',
    got: files.length === 0 ? 'no files' : listed(files),
  })
}

async function inspectWithBase(
  directory: NodeDirectory,
  { base, relativeChange = false, strict }: InspectOptions,
): Promise<InspectReport> {
  const report = await inspectAdapterFolder(directory, { strict })
  if (base === undefined) return { kind: 'adapter', ...report }
  const normDeltas = relativeChange ? new Map(report.layers.map(({ name, normDelta }) => [name, normDelta])) : undefined
  return { kind: 'adapter', ...report, fit: await fitTo(directory, base, normDeltas) }
}

async function fitTo(
  directory: NodeDirectory,
  base: string,
  normDeltas: ReadonlyMap<string, number> | undefined,
): Promise<FitReport> {
  const onnx = await locateOnnx(base)
  if (onnx === undefined) {
    const { directory: folder, file } = await locate(base)
    return fitCheckpoint(folder, directory, { basePath: file, normDeltas })
  }
  const adapter = await openAdapter(directory, () => {})
  try {
    const model = await loadOnnx(onnx.directory, onnx.file)
    try {
      const { fitOnnx } = await import('../merge/onnx/fit.js')
      return await fitOnnx(model, adapter, normDeltas)
    } finally {
      await model.close()
    }
  } finally {
    await adapter.close()
  }
}

async function inspectCheckpoint(directory: NodeDirectory, file: string | undefined): Promise<InspectReport> {
  const checkpoint = await openCheckpoint(directory, file)
  try {
    const listed = [...checkpoint.tensors.values()].map(({ info: { name, dtype, shape } }) => ({ name, dtype, shape }))
    return {
      kind: 'checkpoint',
      params: listed.reduce((sum, { shape }) => sum + elementCount(shape), 0),
      files: checkpoint.shards.map(({ path }) => path),
      tensors: listed,
      metadata: checkpoint.shards[0].file.metadata,
    }
  } finally {
    await checkpoint.close()
  }
}

async function inspectOnnx(directory: NodeDirectory, file: string): Promise<InspectReport> {
  const model = await loadOnnx(directory, file)
  try {
    const { Graph } = await import('../graph/view/graph.js')
    const { findLinears } = await import('../graph/match/linears.js')
    const graph = new Graph(model.proto)
    return {
      kind: 'onnx',
      inputs: graph.inputs.map(({ name }) => name),
      outputs: graph.outputs.map(({ name }) => name),
      linears: findLinears(graph).map(({ name, kind, d, k, isHead }) => ({ name, kind, d, k, isHead })),
    }
  } finally {
    await model.close()
  }
}
