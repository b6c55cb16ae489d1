// Merges the head that an adapter brings into an ONNX graph: the graph's head gets new values, or layers are appended.

import { encodeFloats } from '../../core/base/dtype.js'
import { UnsupportedError } from '../../core/base/errors.js'
import type { PartOfKind } from '../../lora/adapter.js'
import type { OpenAdapter } from '../../lora/peft/open.js'
import { headOfType } from '../../model/heads/head-forms.js'
import { appendHead, type PlacedHead, placeHead } from '../../model/heads/heads.js'
import { readWholeTexts } from '../../model/inputs/without-cache.js'
import type { Linear } from '../../model/match/linears.js'
import { TensorProto_DataType as DataType, TensorProtoSchema } from '../../onnx/format/gen/onnx_pb.js'
import { create } from '../../onnx/format/protobuf.js'
import { Builder } from '../../onnx/view/builder.js'
import type { Graph } from '../../onnx/view/graph.js'
import { valueInfo } from '../../onnx/view/value-info.js'
import type { GraphShare } from '../plan/adapters.js'
import { type HeadEdit, type ModelConfig, meaningOf } from '../plan/config-edit.js'
import { loadTables } from '../plan/names/tables.js'

const LOGITS = 'logits'

export interface MergedHead {
  readonly adapter: OpenAdapter
  readonly placed: PlacedHead
  /** True if the graph has layers of these shapes, which get new values; else new layers are appended. */
  readonly isReplaced: boolean
}

/** Finds the place of the adapters' head. Returns undefined if they bring no head that is known. */
export function findMergedHead(
  graph: Graph,
  linears: readonly Linear[],
  config: ModelConfig,
  adapters: readonly Pick<GraphShare, 'adapter' | 'parts'>[],
): MergedHead | undefined {
  const heads: MergedHead[] = []
  for (const { adapter, parts } of adapters) {
    const replacements = parts.flatMap((part) => (part.kind === 'replacement' ? part : []))
    if (replacements.length === 0) continue
    const shapes = new Map(replacements.map(({ name, tensors }) => [name, tensors.weight.shape]))
    const base = { config, graph, linears }
    const form = headOfType(adapter.config.taskType, base)
    const placed = form && placeHead(form, base, (name) => shapes.get(name))
    if (placed === undefined) continue
    const isReplaced = placed.layers.every(({ module, kind }) => {
      if (kind === 'norm') return true
      const [d, k] = shapes.get(`${module}.weight`)!
      return linears.some((linear) => linear.name === module && linear.d === d && linear.k === k)
    })
    heads.push({ adapter, placed, isReplaced })
  }
  if (heads.length < 2) return heads[0]
  const [{ placed }] = heads
  throw new UnsupportedError({
    where: [...placed.tensors][0],
    what: 'two adapters bring a head, and the result can have one only',
    hint: 'Merge one of them, or use both in a session',
  })
}

/**
 * Appends the head and makes its logits the only output. A decoder loses its cache inputs. Returns the new
 * initializers.
 */
export async function writeHead(
  graph: Graph,
  linears: readonly Linear[],
  { adapter, placed }: MergedHead,
): Promise<string[]> {
  if (placed.input.rows === 'last') readWholeTexts(graph)
  graph.outputs = [valueInfo(placed.input.value, DataType.FLOAT)]
  graph.prune()
  const added: string[] = []
  const g = new Builder(graph, '')
  const isHalf = linears.some(({ dataType }) => dataType === DataType.FLOAT16)
  const values = new Map<string, PartOfKind<'replacement'>>()
  for (const { name } of adapter.parts()) {
    if (placed.tensors.has(name)) values.set(name, (await adapter.read(name)) as PartOfKind<'replacement'>)
  }
  const tensorOf = (name: string) => {
    const part = values.get(name)
    if (part === undefined) return undefined
    const rawData = encodeFloats(Float32Array.from(part.weight.data), 'fp32')
    const dims = part.shape.map(BigInt)
    const freshName = graph.initializers.has(name) ? graph.freshName(name) : name
    added.push(freshName)
    return graph.addInitializer(create(TensorProtoSchema, { name: freshName, dataType: DataType.FLOAT, dims, rawData }))
  }
  // The head is written in float32. It is small, and exporters give models in half precision hidden states of either
  // type.
  const { value } = placed.input
  const input = isHalf ? { ...placed.input, value: g.cast(value, DataType.FLOAT) } : placed.input
  const logits = appendHead(g, input, placed.layers, tensorOf)
  graph.rename(logits, LOGITS)
  const axes = placed.input.rows === 'all' ? ['batch_size', 'sequence_length'] : ['batch_size']
  graph.outputs = [valueInfo(LOGITS, DataType.FLOAT, [...axes, placed.count])]
  return added
}

export async function headEdit(
  config: ModelConfig,
  { adapter, placed: { count, architecture } }: MergedHead,
): Promise<HeadEdit> {
  const head = (await loadTables()).head(String(config.model_type), String(adapter.config.taskType))
  return { architecture: head?.architecture ?? architecture, count, ...meaningOf([{ adapter }], count) }
}
