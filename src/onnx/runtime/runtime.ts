// The narrow view of ONNX Runtime that the rest of lowrank sees. Only files in this folder name onnxruntime-*.

import { f16ToF32 } from '../../core/base/dtype.js'
import { UnsupportedError } from '../../core/base/errors.js'
import type { BlobLike } from '../../core/base/globals.js'
import { oneOf } from '../../core/base/options.js'

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

/** Turns a Float16Array, which only some JavaScript engines have, into a Uint16Array. */
export function withoutFloat16Array(data: unknown): TensorData {
  const view = data as Uint16Array
  if (Object.prototype.toString.call(data) !== '[object Float16Array]') return view
  return new Uint16Array(view.buffer, view.byteOffset, view.length)
}

/** A tensor that a run takes or returns. */
export interface RuntimeTensor {
  /** The type of the elements. */
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
  /** A serialized ModelProto. It is small because its large initializers are external. */
  graph: Uint8Array
  /** In Node, the real folder that external locations are relative to. */
  weightsFolder?: string
  /** In a browser, the content of each external location. */
  weights?: { location: string; data: Uint8Array | BlobLike }[]
  /** Stops ONNX Runtime from merging nodes that compute the same: they are repeated on purpose. */
  keepsRepeats?: boolean
  /** Opens without ONNX Runtime's optimizers for the CPU, which would take longer than they save. */
  isOptimized?: boolean
}

/** How ONNX Runtime opens and runs a graph. */
export interface SessionOptions {
  /**
   * Number of processor threads. By default, the runtime chooses.
   *
   * In browsers, the page must be isolated from other origins, and the default is half of the processors, at most 4.
   * @range an integer in [1, 1024]
   */
  threads?: number
  /**
   * Lets threads sleep while they wait for each other. By default they keep their processors busy, which is faster by
   * about a fifth on a machine that does nothing else, and slower by a third or more beside other busy programs.
   * Default false.
   * @help let waiting threads sleep: slower alone, faster beside other busy programs
   */
  yieldProcessors?: boolean
  /** Uses less memory, but runs a few percent slower: ONNX Runtime does not copy the weights. */
  lowMemory?: boolean
  /** Multiplies dequantized weights with the inputs as floats, not rounded to 8 bits. Default false. */
  exactProducts?: boolean
  /** Graph optimization level. Default 'all'. */
  optimization?: 'disabled' | 'basic' | 'extended' | 'all'
  /** Names of execution providers, as the runtime spells them. Default: its CPU provider. */
  executionProviders?: readonly string[]
  /** Write a profile next to this prefix (Node). */
  profilePrefix?: string
}

/** The form in which outputs are returned. These options are only for sessions in the caller's thread. */
export interface OutputOptions {
  /** Returns ONNX Runtime's tensor objects, which can be fed without conversion. */
  keepsTensors?: boolean | undefined
  /** Outputs that stay on the GPU if the session runs there. They can be fed to any session on the GPU. */
  gpuOutputs?: readonly string[] | undefined
}

/**
 * Says whether a session can keep tensors on the GPU. The runtimes support this only for WebGPU; other devices copy all
 * inputs and outputs. The first provider is the one that computes.
 */
export function keepsOnGpu({ executionProviders: [first] = [] }: SessionOptions): boolean {
  return first === 'webgpu'
}

/** Says whether a tensor is on the GPU. Such a tensor is fed as it is, and its `data` cannot be read. */
export function isOnGpu(tensor: object): boolean {
  return (tensor as { location?: unknown }).location === 'gpu-buffer'
}

/** Frees tensors that are on the GPU. Nothing else frees them. */
export function freeOnGpu(...tensors: readonly RuntimeTensor[]): void {
  for (const tensor of tensors) if (isOnGpu(tensor)) tensor.dispose?.()
}

export interface RuntimeSession {
  readonly inputNames: readonly string[]
  readonly outputNames: readonly string[]
  /**
   * Runs the graph. The outputs do not share memory with the session.
   *
   * @param held more feeds, which are prepared only once for each object. They take precedence over `feeds`
   */
  run(feeds: Feeds, outputNames?: readonly string[], held?: Feeds): Promise<Record<string, RuntimeTensor>>
  dispose(): Promise<void>
}

export interface SessionOpener {
  createSession(model: SessionModel, options?: SessionOptions & OutputOptions): Promise<RuntimeSession>
}

export interface Runtime extends SessionOpener {
  readonly name: string
  toHost?(tensor: RuntimeTensor): Promise<RuntimeTensor>
}

/** Throws UnsupportedError if a runtime lacks an operator of a graph, which is given without its weights. */
export async function checkOperators(
  runtime: SessionOpener,
  graph: Uint8Array,
  options: SessionOptions,
): Promise<void> {
  try {
    await (await runtime.createSession({ graph }, { ...options, optimization: 'disabled' })).dispose()
  } catch (error) {
    // Other errors may come from the missing weights, which some operators want to be constant.
    if (error instanceof UnsupportedError) throw error
  }
}
