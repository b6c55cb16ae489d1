// The narrow view of ONNX Runtime that the rest of lowrank sees. Only files in this folder name onnxruntime-*.

import { f16ToF32 } from '../base/dtype.js'
import { UnsupportedError } from '../base/errors.js'
import type { BlobLike } from '../base/globals.js'
import { oneOf } from '../base/options.js'

/** A tensor's elements, row-major. float16 comes as Uint16Array, bool as Uint8Array. */
export type TensorData =
  | Float32Array
  | Float64Array
  | Int32Array
  | BigInt64Array
  | Uint8Array
  | Int8Array
  | Uint16Array
  | BigUint64Array
  | Uint32Array
  | Int16Array

const TYPES = [
  ...['float32', 'float64', 'float16', 'int64', 'int32', 'int16', 'int8'],
  ...['uint8', 'uint16', 'uint32', 'uint64', 'bool'],
] as const

/** ONNX Runtime's spelling of a tensor's type. */
export type TensorType = (typeof TYPES)[number]

export const TENSOR_TYPES = oneOf(...TYPES)

/** JavaScript's Float16Array, where it has it, becomes Uint16Array: one form for all. */
export function withoutFloat16Array(data: unknown): TensorData {
  const view = data as Uint16Array
  if (Object.prototype.toString.call(data) !== '[object Float16Array]') return view
  return new Uint16Array(view.buffer, view.byteOffset, view.length)
}

/** A tensor that a run takes or gives. */
export interface RuntimeTensor {
  /** Element type. */
  type: TensorType
  /** As many elements as the product of `dims`, row-major. */
  data: TensorData
  /** The shape; [] for a scalar. */
  dims: readonly number[]
  /** @internal */
  dispose?(): void
}

export function floatsOf({ data, type }: RuntimeTensor): Float32Array {
  if (data instanceof Float32Array) return data
  if (data instanceof Uint16Array && type === 'float16') return f16ToF32(data)
  throw new UnsupportedError({
    where: 'ONNX model',
    what: 'an output of a type that is not read',
    expected: 'float32, float16',
    got: type,
  })
}

/** Input name → tensor. */
export type Feeds = Record<string, RuntimeTensor>

export interface SessionModel {
  /** A serialized ModelProto, small: its large initializers are external. */
  graph: Uint8Array
  /** Node: the real folder that external locations are relative to. */
  weightsFolder?: string
  /** Browser: the content of each external location. */
  weights?: { location: string; data: Uint8Array | BlobLike }[]
  /** Nodes that compute the same are meant to, and ONNX Runtime must not make one of them. */
  keepsRepeats?: boolean
  /** The optimizers of ONNX Runtime for the CPU would take longer than what they find saves. */
  isOptimized?: boolean
}

/** How ONNX Runtime opens and runs a graph. */
export interface SessionOptions {
  /**
   * Number of processor threads. Default: the runtime's own choice.
   *
   * In browsers, the page must be isolated from other origins, and the default is half of the processors, at most 4.
   * @range an integer in [1, 1024]
   */
  threads?: number
  /** Uses less memory, but runs a few percent slower: ONNX Runtime does not copy the weights. */
  lowMemory?: boolean
  /** Products of dequantized weights take their inputs as floats, not rounded to 8 bits. Default false. */
  exactProducts?: boolean
  /** Graph optimization level. Default 'all'. */
  optimization?: 'disabled' | 'basic' | 'extended' | 'all'
  /** Names of execution providers, as the runtime spells them. Default: its CPU provider. */
  executionProviders?: readonly string[]
  /** Write a profile next to this prefix (Node). */
  profilePrefix?: string
}

/** How outputs come, where the session lives in the caller's thread. */
export interface OutputOptions {
  /** Outputs are ONNX Runtime's own tensors, and such tensors are fed as they are. */
  keepsTensors?: boolean | undefined
  /** Outputs that stay on the GPU, if the session is there. They can be fed to every session that is. */
  gpuOutputs?: readonly string[] | undefined
}

/** The runtimes bind tensors on WebGPU alone: elsewhere all inputs and outputs cross. The first provider computes. */
export function keepsOnGpu({ executionProviders: [first] = [] }: SessionOptions): boolean {
  return first === 'webgpu'
}

/** A tensor that is fed as it is, and whose `data` cannot be read. */
export function isOnGpu(tensor: object): boolean {
  return (tensor as { location?: unknown }).location === 'gpu-buffer'
}

/** Tensors on a GPU are freed by this alone. */
export function freeOnGpu(...tensors: readonly RuntimeTensor[]): void {
  for (const tensor of tensors) if (isOnGpu(tensor)) tensor.dispose?.()
}

export interface RuntimeSession {
  readonly inputNames: readonly string[]
  readonly outputNames: readonly string[]
  /** Outputs own their data. `held`: further feeds, made ready once for each object; they win over `feeds`. */
  run(feeds: Feeds, outputNames?: readonly string[], held?: Feeds): Promise<Record<string, RuntimeTensor>>
  dispose(): Promise<void>
}

export interface SessionOpener {
  createSession(model: SessionModel, options?: SessionOptions & OutputOptions): Promise<RuntimeSession>
}

export interface Runtime extends SessionOpener {
  readonly name: string
  /** For tensors of sessions that keep tensors on a GPU. A copy there is to be freed. */
  toGpu?(tensor: RuntimeTensor): Promise<RuntimeTensor>
  toHost?(tensor: RuntimeTensor): Promise<RuntimeTensor>
}
