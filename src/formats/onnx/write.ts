// Writes an .onnx file as a stream: the graph from memory, weights from byte ranges or from a caller that replaces
// them. No more than a chunk of weights is in memory at any time.

import { toBinary } from '@bufbuild/protobuf'
import { type ByteSink, type Directory, writeThrough } from '../../base/bytes.js'
import { FormatError, ShapeError } from '../../base/errors.js'
import {
  GraphProtoSchema,
  type ModelProto,
  ModelProtoSchema,
  type TensorProto,
  TensorProtoSchema,
} from './gen/onnx_pb.js'
import { copyMessage, mapTensors } from './messages.js'
import type { OnnxModel } from './model.js'
import { lengthDelimited } from './scan.js'
import {
  byteLengthOf,
  dimsOf,
  externalTensor,
  inlineTensor,
  isExternal,
  tensorMeta,
  type WeightRange,
  weightRange,
} from './tensors.js'

/** Gives the new bytes of a weight, as many as the old ones, whole or in pieces. */
export type WeightWriter = (weight: WeightRange) => AsyncIterable<Uint8Array> | Promise<Uint8Array>

/** A protobuf message ends at 2 GiB, so that larger models keep weights beside it; some room is left for the graph. */
const MAX_INLINE_BYTES = 2 ** 31 - 2 ** 24

/** Pages can be mapped into memory only from such offsets. */
const ALIGNMENT = 4096

const COPY_BYTES = 4 << 20

const MODEL_GRAPH = 7
const GRAPH_INITIALIZER = 5
const TENSOR_RAW_DATA = 9

/**
 * Writes `proto`, a graph over `model`'s weights, to `path`. Weights go into a file of their own (`path` + `_data`, or
 * with the ending that the model's own file has) when the model had one or the whole would pass protobuf's 2 GiB.
 *
 * @param overrides writers of initializers whose content is replaced, by name; type and shape stay
 * @throws FormatError when `overrides` names an initializer that the graph does not have
 * @throws ShapeError when a writer gives more or fewer bytes than the weight has
 */
export async function writeOnnx(
  model: OnnxModel,
  proto: ModelProto,
  directory: Directory,
  path: string,
  overrides: ReadonlyMap<string, WeightWriter> = new Map(),
): Promise<void> {
  const complete = await inlineAttributes(model, proto)
  const weights = (complete.graph?.initializer ?? []).map((tensor) => planWeight(model, tensor, overrides))
  const names = new Set(weights.map(({ tensor }) => tensor.name))
  for (const name of overrides.keys()) {
    if (names.has(name)) continue
    throw new FormatError({ where: model.name, what: `no initializer ${JSON.stringify(name)} to replace` })
  }
  const external = [...model.files.keys()].find((location) => location !== model.fileName)
  const total = weights.reduce((sum, { range }) => sum + range.byteLength, 0)
  if (external === undefined && total <= MAX_INLINE_BYTES) {
    await writeThrough(directory, path, (sink) => writeInline(sink, complete, weights))
    return
  }
  const ending = external?.startsWith(model.fileName) ? external.slice(model.fileName.length) : '_data'
  const dataPath = path + ending
  const tensors = await writeExternal(directory, dataPath, weights)
  const linked = mapTensors(complete, (tensor) => tensors.get(tensor) ?? tensor)
  try {
    await writeThrough(directory, path, (sink) => sink.write(toBinary(ModelProtoSchema, linked)))
  } catch (error) {
    await directory.remove(dataPath)
    throw error
  }
}

/** Writes the weights into a file of their own; gives the tensors that point there. */
async function writeExternal(
  directory: Directory,
  path: string,
  weights: readonly PlannedWeight[],
): Promise<Map<TensorProto, TensorProto>> {
  const location = path.slice(path.lastIndexOf('/') + 1)
  const tensors = new Map<TensorProto, TensorProto>()
  await writeThrough(directory, path, async (sink) => {
    let offset = 0
    for (const weight of weights) {
      if (weight.content instanceof Uint8Array) continue
      const padding = (ALIGNMENT - (offset % ALIGNMENT)) % ALIGNMENT
      if (padding > 0) await sink.write(new Uint8Array(padding))
      offset += padding
      await writeContent(sink, weight.range, weight.content)
      tensors.set(weight.tensor, externalTensor(weight.tensor, { ...weight.range, location, offset }))
      offset += weight.range.byteLength
    }
  })
  return tensors
}

interface PlannedWeight {
  readonly tensor: TensorProto
  readonly range: WeightRange
  /** The serialized tensor, if it stays inside the graph; else what gives its bytes. */
  readonly content: Uint8Array | WeightWriter
}

function planWeight(
  model: OnnxModel,
  tensor: TensorProto,
  overrides: ReadonlyMap<string, WeightWriter>,
): PlannedWeight {
  const range = isExternal(tensor)
    ? weightRange(tensor, model.name)
    : {
        name: tensor.name,
        location: '',
        offset: 0,
        byteLength: byteLengthOf(tensor.dataType, dimsOf(tensor)) ?? 0,
        dataType: tensor.dataType,
        dims: dimsOf(tensor),
      }
  const override = overrides.get(tensor.name)
  if (override !== undefined) return { tensor, range, content: override }
  if (!isExternal(tensor)) return { tensor, range, content: toBinary(TensorProtoSchema, tensor) }
  return { tensor, range, content: (weight) => copy(model, weight) }
}

async function* copy(model: OnnxModel, { location, offset, byteLength }: WeightRange): AsyncIterable<Uint8Array> {
  const source = model.file(location)
  for (let at = 0; at < byteLength; at += COPY_BYTES) {
    yield await source.read(offset + at, Math.min(COPY_BYTES, byteLength - at))
  }
}

/** Protobuf takes fields in any order: graph and initializers come last, so that their lengths are known in advance. */
async function writeInline(sink: ByteSink, proto: ModelProto, weights: readonly PlannedWeight[]): Promise<void> {
  const graph = proto.graph as NonNullable<ModelProto['graph']>
  const graphBytes = toBinary(GraphProtoSchema, copyMessage(graph, { initializer: [] }))
  const heads = weights.map(({ tensor, range, content }) => {
    if (content instanceof Uint8Array) return [lengthDelimited(GRAPH_INITIALIZER, content.byteLength), content]
    const meta = toBinary(TensorProtoSchema, tensorMeta(tensor))
    const raw = lengthDelimited(TENSOR_RAW_DATA, range.byteLength)
    const length = meta.byteLength + raw.byteLength + range.byteLength
    return [lengthDelimited(GRAPH_INITIALIZER, length), meta, raw]
  })
  const graphLength = weights.reduce(
    (sum, { range, content }, i) =>
      sum +
      heads[i].reduce((bytes, chunk) => bytes + chunk.byteLength, 0) +
      (content instanceof Uint8Array ? 0 : range.byteLength),
    graphBytes.byteLength,
  )
  const withoutGraph = copyMessage(proto)
  delete withoutGraph.graph
  await sink.write(toBinary(ModelProtoSchema, withoutGraph))
  await sink.write(lengthDelimited(MODEL_GRAPH, graphLength))
  await sink.write(graphBytes)
  for (const [i, { range, content }] of weights.entries()) {
    for (const chunk of heads[i]) await sink.write(chunk)
    if (!(content instanceof Uint8Array)) await writeContent(sink, range, content)
  }
}

async function writeContent(sink: ByteSink, range: WeightRange, writer: WeightWriter): Promise<void> {
  const given = writer(range)
  let written = 0
  if (Symbol.asyncIterator in given) {
    for await (const chunk of given) {
      await sink.write(chunk)
      written += chunk.byteLength
    }
  } else {
    const bytes = await given
    await sink.write(bytes)
    written = bytes.byteLength
  }
  if (written === range.byteLength) return
  throw new ShapeError({
    where: range.name,
    what: 'the new weight has another size',
    expected: `${range.byteLength} bytes`,
    got: `${written} bytes`,
  })
}

/** Contents in attributes are small: they go back into the graph. */
async function inlineAttributes(model: OnnxModel, proto: ModelProto): Promise<ModelProto> {
  const initializers = new Set(proto.graph?.initializer)
  const contents = new Map<TensorProto, TensorProto>()
  const pending: TensorProto[] = []
  mapTensors(proto, (tensor) => {
    if (isExternal(tensor) && !initializers.has(tensor)) pending.push(tensor)
    return tensor
  })
  for (const tensor of pending) contents.set(tensor, inlineTensor(tensor, await model.readTensor(tensor)))
  return mapTensors(proto, (tensor) => contents.get(tensor) ?? tensor)
}
