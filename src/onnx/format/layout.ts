// Plans the files of an ONNX model: each byte is known, copied from the model's files, or part of a new weight.

import { FormatError } from '../../core/base/errors.js'
import {
  GraphProtoSchema,
  type ModelProto,
  ModelProtoSchema,
  type TensorProto,
  TensorProtoSchema,
} from './gen/onnx_pb.js'
import { copyMessage, mapTensors, tensorsOf } from './messages.js'
import type { OnnxModel } from './model.js'
import { toBinary } from './protobuf.js'
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

/** A protobuf message cannot be larger than 2 GiB. Some of that is left for the graph. */
const MAX_INLINE_BYTES = 2 ** 31 - 2 ** 24

/** Files can be mapped into memory only at multiples of a page. */
const ALIGNMENT = 4096

const MODEL_GRAPH = 7
const GRAPH_INITIALIZER = 5
const TENSOR_RAW_DATA = 9

export interface OnnxLayout {
  /** Initializers whose content is replaced; type and shape stay. */
  readonly replaced?: ReadonlySet<string> | undefined
  /** Keeps the model's files. New weights go into the graph or, above `maxAddedBytes`, into a new data file. */
  readonly keepsFiles?: boolean | undefined
  readonly maxAddedBytes?: number | undefined
  /** What the paths of data files begin with. Default: the path of the graph. */
  readonly dataPath?: string | undefined
}

/** Consecutive bytes of a file: known bytes, new content of an initializer, or a range of a file of the model. */
export type OnnxPiece = { readonly offset: number; readonly byteLength: number } & (
  | { readonly bytes: Uint8Array }
  | { readonly replaced: string }
  | { readonly location: string; readonly from: number }
)

export interface OnnxFile {
  readonly path: string
  readonly byteLength: number
  readonly pieces: readonly OnnxPiece[]
}

const MAX_ADDED_BYTES = 1 << 25
/** Smaller tensors, such as shapes, stay in the graph. */
const MIN_EXTERNAL_BYTES = 1024

/**
 * Plans the files of a model, and returns data files before the graph. Weights go into a data file, `path` + `_data`,
 * if the model had such a file or if they exceed protobuf's 2 GiB. With `keepsFiles` there can be several data files:
 * NAME_data, NAME_data_1, … as transformers.js numbers them.
 */
export async function planOnnx(
  model: OnnxModel,
  proto: ModelProto,
  path: string,
  { replaced = new Set(), keepsFiles = false, maxAddedBytes = MAX_ADDED_BYTES, dataPath = path }: OnnxLayout = {},
): Promise<OnnxFile[]> {
  const complete = await inlineAttributes(model, proto)
  const weights = (complete.graph?.initializer ?? []).map((tensor) => planWeight(model, tensor, replaced))
  const names = new Set(weights.map(({ tensor }) => tensor.name))
  for (const name of replaced) {
    if (names.has(name)) continue
    throw new FormatError({ where: model.name, what: `no initializer ${JSON.stringify(name)} to replace` })
  }
  const external = [...model.files.keys()].find((location) => location !== model.fileName)
  const total = weights.reduce((sum, { range }) => sum + range.byteLength, 0)
  if (external === undefined && total <= MAX_INLINE_BYTES) return [graphFile(path, complete, weights)]
  if (external !== undefined && keepsFiles)
    return keepFiles(model, complete, weights, path, { dataPath, maxAddedBytes })
  const ending = external?.startsWith(model.fileName) ? external.slice(model.fileName.length) : '_data'
  const { file, tensors } = dataFile(dataPath + ending, weights)
  const graph = new FilePlan(path)
  const moved = mapTensors(complete, (tensor) => tensors.get(tensor) ?? tensor)
  graph.add(toBinary(ModelProtoSchema, moved))
  return [file, graph]
}

class FilePlan implements OnnxFile {
  byteLength = 0
  readonly pieces: OnnxPiece[] = []

  constructor(readonly path: string) {}

  add(bytes: Uint8Array): void {
    if (bytes.byteLength > 0) this.pieces.push({ offset: this.byteLength, byteLength: bytes.byteLength, bytes })
    this.byteLength += bytes.byteLength
  }

  addWeight({ range, isReplaced }: PlannedWeight): void {
    const { name, location, offset: from, byteLength } = range
    const place = { offset: this.byteLength, byteLength }
    if (byteLength > 0) this.pieces.push({ ...place, ...(isReplaced ? { replaced: name } : { location, from }) })
    this.byteLength += byteLength
  }
}

/** Copies the files that are still read, and plans files for what is new. */
function keepFiles(
  model: OnnxModel,
  proto: ModelProto,
  weights: readonly PlannedWeight[],
  path: string,
  { dataPath, maxAddedBytes }: { readonly dataPath: string; readonly maxAddedBytes: number },
): OnnxFile[] {
  const isKept = ({ tensor, range, isReplaced }: PlannedWeight) =>
    !isReplaced && isExternal(tensor) && range.location !== model.fileName
  const kept = weights.filter(isKept)
  const locations = [...model.files.keys()].filter((file) => kept.some(({ range }) => range.location === file))
  const files: OnnxFile[] = []
  const nextName = () => `${dataPath}_data${files.length === 0 ? '' : `_${files.length}`}`
  const renamed = new Map<string, string>()
  // Numeric order: X_data_2 comes before X_data_10.
  for (const location of locations.sort((a, b) => a.localeCompare(b, 'en', { numeric: true }))) {
    const name = nextName()
    const { byteLength } = model.file(location)
    const pieces = [{ offset: 0, byteLength, location, from: 0 }]
    renamed.set(location, name.slice(name.lastIndexOf('/') + 1))
    files.push({ path: name, byteLength, pieces })
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
    const addedData = dataFile(nextName(), added, true)
    for (const entry of addedData.tensors) tensors.set(...entry)
    files.push(addedData.file)
  }
  const inside = weights.map((weight): PlannedWeight => {
    const moved = tensors.get(weight.tensor)
    return moved === undefined ? weight : { ...weight, content: toBinary(TensorProtoSchema, moved) }
  })
  return [...files, graphFile(path, proto, inside)]
}

/** A file of weights, and the tensors that point there; with `all` also those whose content is in the graph. */
function dataFile(
  path: string,
  weights: readonly PlannedWeight[],
  all = false,
): { file: OnnxFile; tensors: Map<TensorProto, TensorProto> } {
  const location = path.slice(path.lastIndexOf('/') + 1)
  const tensors = new Map<TensorProto, TensorProto>()
  const file = new FilePlan(path)
  for (const weight of weights) {
    const { content, tensor } = weight
    if (content !== undefined && !all) continue
    file.add(new Uint8Array((ALIGNMENT - (file.byteLength % ALIGNMENT)) % ALIGNMENT))
    tensors.set(tensor, externalTensor(tensor, { ...weight.range, location, offset: file.byteLength }))
    if (content === undefined) file.addWeight(weight)
    else file.add(inlineBytes(tensor, path))
  }
  return { file, tensors }
}

interface PlannedWeight {
  readonly tensor: TensorProto
  readonly range: WeightRange
  readonly content: Uint8Array | undefined
  readonly isReplaced: boolean
}

function planWeight(model: OnnxModel, tensor: TensorProto, replaced: ReadonlySet<string>): PlannedWeight {
  const { name, dataType } = tensor
  const dims = dimsOf(tensor)
  const inside = { name, location: '', offset: 0, byteLength: byteLengthOf(dataType, dims) ?? 0, dataType, dims }
  const range = isExternal(tensor) ? weightRange(tensor, model.name) : inside
  const isReplaced = replaced.has(name)
  const isInside = !isReplaced && !isExternal(tensor)
  return { tensor, range, content: isInside ? toBinary(TensorProtoSchema, tensor) : undefined, isReplaced }
}

/** Protobuf allows fields in any order. Graph and initializers are written last, when their lengths are known. */
function graphFile(path: string, proto: ModelProto, weights: readonly PlannedWeight[]): OnnxFile {
  const graph = proto.graph as NonNullable<ModelProto['graph']>
  const graphBytes = toBinary(GraphProtoSchema, copyMessage(graph, { initializer: [] }))
  const initializers = new FilePlan(path)
  for (const weight of weights) {
    const { tensor, range, content } = weight
    if (content !== undefined) {
      initializers.add(lengthDelimited(GRAPH_INITIALIZER, content.byteLength))
      initializers.add(content)
      continue
    }
    const meta = toBinary(TensorProtoSchema, tensorMeta(tensor))
    const raw = lengthDelimited(TENSOR_RAW_DATA, range.byteLength)
    const length = meta.byteLength + raw.byteLength + range.byteLength
    for (const bytes of [lengthDelimited(GRAPH_INITIALIZER, length), meta, raw]) initializers.add(bytes)
    initializers.addWeight(weight)
  }
  const withoutGraph = copyMessage(proto)
  delete withoutGraph.graph
  const file = new FilePlan(path)
  file.add(toBinary(ModelProtoSchema, withoutGraph))
  file.add(lengthDelimited(MODEL_GRAPH, graphBytes.byteLength + initializers.byteLength))
  file.add(graphBytes)
  const start = file.byteLength
  for (const piece of initializers.pieces) file.pieces.push({ ...piece, offset: start + piece.offset })
  file.byteLength += initializers.byteLength
  return file
}

/** Puts the contents of attributes, which are small, back into the graph. */
async function inlineAttributes(model: OnnxModel, proto: ModelProto): Promise<ModelProto> {
  const initializers = new Set(proto.graph?.initializer)
  const contents = new Map<TensorProto, TensorProto>()
  for (const tensor of tensorsOf(proto)) {
    if (!isExternal(tensor) || initializers.has(tensor)) continue
    contents.set(tensor, inlineTensor(tensor, await model.readTensor(tensor)))
  }
  return mapTensors(proto, (tensor) => contents.get(tensor) ?? tensor)
}
