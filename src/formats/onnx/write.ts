// Writes an .onnx file as a stream: the graph from memory, weights from byte ranges or from a caller that replaces
// them. No more than a chunk of weights is in memory at any time.

import { toBinary } from '@bufbuild/protobuf'
import { type ByteSink, type ByteSource, type Directory, writeThrough } from '../../base/bytes.js'
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
  inlineBytes,
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

/** How a model is written. */
export interface WriteOnnxOptions {
  /** Writers of initializers whose content is replaced, by name; type and shape stay. */
  readonly overrides?: ReadonlyMap<string, WeightWriter> | undefined
  /**
   * Files beside the model's own stay as they are, under names that belong to the new file; what is new goes into the graph or, above
   * `maxAddedBytes`, into a data file of its own. Default: all weights are written anew.
   */
  readonly keepsFiles?: boolean | undefined
  /** Kept files become hard links where that can be. Default false: they are copied. */
  readonly links?: boolean | undefined
  /** Most bytes of new weights that go into a graph whose other weights are in files. Default 32 MiB. */
  readonly maxAddedBytes?: number | undefined
}

/** What was written besides the graph. */
export interface WrittenOnnx {
  /** Data files: NAME_data, NAME_data_1, … as transformers.js numbers them. */
  readonly dataFiles: readonly string[]
  /** Files that should have become hard links and were copied, and why. */
  readonly unlinked: readonly { readonly file: string; readonly reason: string }[]
}

const MAX_ADDED_BYTES = 1 << 25
/** Smaller tensors, such as shapes, stay in the graph. */
const MIN_EXTERNAL_BYTES = 1024

/**
 * Writes `proto`, a graph over `model`'s weights, to `path`. Weights go into a separate file if the model had one, or if the whole
 * would be larger than protobuf's 2 GiB. Its name is `path` + `_data`, or has the ending of the model's own file.
 *
 * @throws FormatError when `overrides` names an initializer that the graph does not have
 * @throws ShapeError when a writer gives more or fewer bytes than the weight has
 */
export async function writeOnnx(
  model: OnnxModel,
  proto: ModelProto,
  directory: Directory,
  path: string,
  options: WriteOnnxOptions = {},
): Promise<WrittenOnnx> {
  const { overrides = new Map() } = options
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
    return { dataFiles: [], unlinked: [] }
  }
  if (external !== undefined && options.keepsFiles) {
    return writeKeeping(model, complete, weights, { directory, path, ...options })
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
  return { dataFiles: [dataPath], unlinked: [] }
}

/** Copies or links the files that are still read, and writes what is new. */
async function writeKeeping(
  model: OnnxModel,
  proto: ModelProto,
  weights: readonly PlannedWeight[],
  {
    directory,
    path,
    links = false,
    maxAddedBytes = MAX_ADDED_BYTES,
  }: WriteOnnxOptions & { directory: Directory; path: string },
): Promise<WrittenOnnx> {
  const isKept = ({ tensor, range, isReplaced }: PlannedWeight) =>
    !isReplaced && isExternal(tensor) && range.location !== model.fileName
  const kept = weights.filter(isKept)
  const locations = [...model.files.keys()].filter((file) => kept.some(({ range }) => range.location === file))
  const dataFiles: string[] = []
  const nextName = () => `${path}_data${dataFiles.length === 0 ? '' : `_${dataFiles.length}`}`
  const unlinked: { file: string; reason: string }[] = []
  const renamed = new Map<string, string>()
  for (const location of locations.sort(byNumber)) {
    const name = nextName()
    const reason = links ? await tryLink(directory, name, model.file(location)) : 'copied'
    if (reason !== undefined) await writeThrough(directory, name, (sink) => copyInto(sink, model.file(location)))
    if (links && reason !== undefined) unlinked.push({ file: name, reason })
    renamed.set(location, name.slice(name.lastIndexOf('/') + 1))
    dataFiles.push(name)
  }
  const tensors = new Map<TensorProto, TensorProto>()
  for (const { tensor, range } of kept) {
    const location = renamed.get(range.location) as string
    tensors.set(tensor, location === range.location ? tensor : externalTensor(tensor, { ...range, location }))
  }
  const original = new Set(model.proto.graph?.initializer)
  const added = weights.filter((weight) => {
    const isNew = weight.isReplaced || !original.has(weight.tensor)
    return isNew && !isKept(weight) && weight.range.byteLength >= MIN_EXTERNAL_BYTES
  })
  const addedBytes = added.reduce((sum, { range }) => sum + range.byteLength, 0)
  if (addedBytes > maxAddedBytes) {
    const name = nextName()
    for (const entry of await writeExternal(directory, name, added, true)) tensors.set(...entry)
    dataFiles.push(name)
  }
  const inside = weights.map((weight): PlannedWeight => {
    const moved = tensors.get(weight.tensor)
    return moved === undefined ? weight : { ...weight, content: toBinary(TensorProtoSchema, moved) }
  })
  await writeThrough(directory, path, (sink) => writeInline(sink, proto, inside))
  return { dataFiles, unlinked }
}

/** X_data_2 before X_data_10. */
function byNumber(a: string, b: string): number {
  return a.localeCompare(b, 'en', { numeric: true })
}

/** Undefined if it became a link, else why not. */
async function tryLink(directory: Directory, path: string, source: ByteSource): Promise<string | undefined> {
  if (directory.link === undefined || source.realPath === undefined) return 'only files of one disk can be linked'
  try {
    await directory.link(path, source.realPath)
    return undefined
  } catch (error) {
    return (error as Error).message
  }
}

async function copyInto(sink: ByteSink, source: ByteSource): Promise<void> {
  for (let at = 0; at < source.byteLength; at += COPY_BYTES) {
    await sink.write(await source.read(at, Math.min(COPY_BYTES, source.byteLength - at)))
  }
}

/**
 * Writes the weights into a file of their own; gives the tensors that point there.
 *
 * @param all also those whose content is in the graph
 */
async function writeExternal(
  directory: Directory,
  path: string,
  weights: readonly PlannedWeight[],
  all = false,
): Promise<Map<TensorProto, TensorProto>> {
  const location = path.slice(path.lastIndexOf('/') + 1)
  const tensors = new Map<TensorProto, TensorProto>()
  await writeThrough(directory, path, async (sink) => {
    let offset = 0
    for (const weight of weights) {
      const { content, tensor } = weight
      if (content instanceof Uint8Array && !all) continue
      const padding = (ALIGNMENT - (offset % ALIGNMENT)) % ALIGNMENT
      if (padding > 0) await sink.write(new Uint8Array(padding))
      offset += padding
      const bytes = content instanceof Uint8Array ? async () => inlineBytes(tensor, path) : content
      await writeContent(sink, weight.range, bytes)
      tensors.set(tensor, externalTensor(tensor, { ...weight.range, location, offset }))
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
  readonly isReplaced: boolean
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
  if (override !== undefined) return { tensor, range, content: override, isReplaced: true }
  if (!isExternal(tensor)) return { tensor, range, content: toBinary(TensorProtoSchema, tensor), isReplaced: false }
  return { tensor, range, content: (weight) => copy(model, weight), isReplaced: false }
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
