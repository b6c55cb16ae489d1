// What a path holds: an adapter, a checkpoint or an ONNX model. Weights of models are not read.

import { UnsupportedError } from '../base/errors.js'
import { loadOnnx } from '../formats/onnx/model.js'
import { parseSafetensorsHeader } from '../formats/safetensors.js'
import { Graph } from '../graph/graph.js'
import { findLinears } from '../graph/linears.js'
import { locate, type NodeDirectory } from '../io/node-files.js'
import { type AdapterReport, inspectAdapter } from '../lora/inspect.js'
import { loadAdapter } from '../lora/peft.js'

export interface CheckpointReport {
  /** Numbers in all tensors. */
  params: number
  tensors: { name: string; dtype: string; shape: readonly number[] }[]
  metadata: Readonly<Record<string, string>>
}

export interface OnnxReport {
  inputs: string[]
  outputs: string[]
  /** Linear layers by module name: what targetModules can name. */
  linears: { name: string; kind: 'matmul' | 'gemm' | 'quantized'; d: number; k: number; isHead: boolean }[]
}

export type InspectReport =
  | ({ kind: 'adapter' } & AdapterReport)
  | ({ kind: 'checkpoint' } & CheckpointReport)
  | ({ kind: 'onnx' } & OnnxReport)

/**
 * Looks at an adapter folder, a safetensors file, an .onnx file, or a folder with one of them.
 *
 * @throws FileError when there is nothing, or none of these; FormatError when it is damaged; UnsupportedError for several
 *   shards; and what loadAdapter throws
 */
export async function inspect(target: string): Promise<InspectReport> {
  const { directory, file } = await locate(target)
  if (file === undefined || /^adapter_(model\.(safetensors|bin)|config\.json)$/.test(file))
    return inspectFolder(directory)
  return file.endsWith('.safetensors') ? inspectCheckpoint(directory, file) : inspectOnnx(directory, file)
}

async function inspectFolder(directory: NodeDirectory): Promise<InspectReport> {
  const files = await directory.list()
  const has = (name: string) => files.includes(name)
  const shards = files.find((name) => name.endsWith('.safetensors.index.json'))
  if (!has('adapter_config.json') && has('model.safetensors')) return inspectCheckpoint(directory, 'model.safetensors')
  if (!has('adapter_config.json') && shards !== undefined) {
    throw new UnsupportedError({
      where: `${directory.name}/${shards}`,
      what: 'checkpoints in several shards cannot be inspected yet',
      hint: 'Name one of its .safetensors files',
    })
  }
  if (!has('adapter_config.json')) {
    for (const graph of ['onnx/model.onnx', 'model.onnx']) {
      if (await directory.has(graph)) return inspectOnnx(directory, graph)
    }
  }
  return { kind: 'adapter', ...inspectAdapter(await loadAdapter(directory)) }
}

async function inspectCheckpoint(directory: NodeDirectory, file: string): Promise<InspectReport> {
  const source = await directory.open(file)
  try {
    const { tensors, metadata } = await parseSafetensorsHeader(source)
    const listed = [...tensors.values()].map(({ name, dtype, shape }) => ({ name, dtype, shape }))
    const params = listed.reduce((sum, { shape }) => sum + shape.reduce((product, size) => product * size, 1), 0)
    return { kind: 'checkpoint', params, tensors: listed, metadata }
  } finally {
    await source.close()
  }
}

async function inspectOnnx(directory: NodeDirectory, file: string): Promise<InspectReport> {
  const model = await loadOnnx(directory, file)
  try {
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
