// An ONNX model whose weights stay on disk: the graph is in memory, and each large tensor is a byte range of a file.

import { type ByteSource, checkRange, type Directory, sniff } from '../../core/base/bytes.js'
import { FileError, FormatError } from '../../core/base/errors.js'
import { type ModelProto, ModelProtoSchema, type TensorProto } from './gen/onnx_pb.js'
import { tensorsOf } from './messages.js'
import { fromBinary, toBinary } from './protobuf.js'
import { scanSkeleton } from './scan.js'
import { inlineBytes, isExternal, weightRange } from './tensors.js'

/** An ONNX model: its graph in memory, its weights as byte ranges of files. */
export class OnnxModel {
  constructor(
    /** The file's path, for messages. */
    readonly name: string,
    /** The file's base name. Tensors inside the file itself are external data with this location. */
    readonly fileName: string,
    /** The graph. Contents of 1 kB or more are external data; their locations are the keys of `files`. */
    readonly proto: ModelProto,
    /** The files that hold weights, by location, including the .onnx file. */
    readonly files: ReadonlyMap<string, ByteSource>,
  ) {}

  /** Results that `once` computed for this model. */
  readonly facts = new Map<unknown, unknown>()

  /**
   * Returns a fact about this model, such as a view of its graph: the first call with this key makes it, and the model
   * keeps it.
   */
  once<T>(key: unknown, make: () => T): T {
    if (!this.facts.has(key)) this.facts.set(key, make())
    return this.facts.get(key) as T
  }

  /**
   * Reads the bytes of a tensor of this model, or of any tensor that points into its files. Only the given range is
   * read.
   *
   * @throws FormatError when content and shape disagree, FileError when the file cannot be read
   */
  async readTensor(tensor: TensorProto, offset = 0, byteLength?: number): Promise<Uint8Array> {
    if (!isExternal(tensor)) {
      const bytes = inlineBytes(tensor, this.name)
      return bytes.subarray(offset, byteLength === undefined ? undefined : offset + byteLength)
    }
    const range = weightRange(tensor, this.name)
    const file = this.file(range.location)
    await file.fetch?.()
    return file.read(range.offset + offset, byteLength ?? range.byteLength - offset)
  }

  /**
   * The file that an external location names.
   *
   * @throws FormatError when the model has no such file
   */
  file(location: string): ByteSource {
    const source = this.files.get(location)
    if (source === undefined) throw new FormatError({ where: this.name, what: `no external file ${location}` })
    return source
  }

  /** True if some of the model's files are on a server and not here yet. */
  get isAway(): boolean {
    return [...this.files.values()].some((file) => file.fetch !== undefined)
  }

  /** Downloads the files that are on a server and not here yet. */
  async fetch(): Promise<void> {
    await Promise.all([...this.files.values()].map((file) => file.fetch?.()))
  }

  /** Closes all files. */
  async close(): Promise<void> {
    await Promise.all([...this.files.values()].map((source) => source.close()))
  }
}

/** Throws for a file that is not an ONNX model, and says what the file is if its first bytes tell. */
async function refuse(source: ByteSource, cause: unknown): Promise<never> {
  const recognized = cause instanceof FormatError ? await sniff(source) : undefined
  if (recognized === undefined) throw cause
  throw new FormatError({
    where: source.name,
    what: `not an ONNX model but ${recognized.name}`,
    hint: recognized.hint,
    cause,
  })
}

/**
 * Opens a model without reading its weights. On the Hub, files of weights stay there until one is read or `fetch` is
 * called. An .onnx file is downloaded: the parts of a graph lie between its weights, and each would take a request.
 * Throws FileError if a file is missing.
 */
export async function loadOnnx(directory: Directory, path: string): Promise<OnnxModel> {
  const slash = path.lastIndexOf('/')
  const fileName = path.slice(slash + 1)
  const files = new Map<string, ByteSource>()
  try {
    const source = await directory.open(path, false)
    files.set(fileName, source)
    const skeleton = await scanSkeleton(source, fileName).catch((cause) => refuse(source, cause))
    const proto = decodeModel(skeleton, source.name)
    const model = new OnnxModel(source.name, fileName, proto, files)
    for (const tensor of tensorsOf(proto)) {
      if (!isExternal(tensor)) continue
      const { location, offset, byteLength } = weightRange(tensor, source.name)
      const known = files.get(location)
      const file = known ?? (await openExternal(directory, path.slice(0, slash + 1), location, source.name))
      files.set(location, file)
      checkRange(file, offset, byteLength)
    }
    return model
  } catch (error) {
    await Promise.all([...files.values()].map((source) => source.close()))
    throw error
  }
}

function decodeModel(skeleton: Uint8Array, where: string): ModelProto {
  try {
    return fromBinary(ModelProtoSchema, skeleton)
  } catch (cause) {
    throw new FormatError({ where, what: 'not an ONNX model: its protobuf is damaged', cause })
  }
}

async function openExternal(
  directory: Directory,
  folder: string,
  location: string,
  where: string,
): Promise<ByteSource> {
  const parts = location.split(/[\\/]/)
  // A model must not reach outside its folder: https://onnx.ai/onnx/repo-docs/ExternalData.html
  if (parts.includes('..') || parts[0] === '' || /^[A-Za-z]:/.test(location)) {
    throw new FormatError({
      where,
      what: 'it keeps weights outside its folder',
      expected: 'a relative path without ..',
      got: JSON.stringify(location),
    })
  }
  const path = folder + parts.filter((part) => part !== '.').join('/')
  if (await directory.has(path)) return directory.open(path, true)
  throw new FileError({
    where,
    what: `its weights are in ${location}, which is not there`,
    hint: 'Put the file next to the .onnx file',
  })
}

/** Writes the graph. External data stay where they are. */
export function serializeModel(proto: ModelProto): Uint8Array {
  return toBinary(ModelProtoSchema, proto)
}
