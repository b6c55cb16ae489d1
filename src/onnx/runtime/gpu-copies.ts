// Copies tensors to the GPU and back, in onnxruntime-node and onnxruntime-web.

import type { RuntimeError } from '../../core/base/errors.js'
import { type RuntimeTensor, type TensorType, withoutFloat16Array } from './runtime.js'

/** Types that can stay on the GPU, with ONNX's numbers. Integers may be shapes, which the CPU computes. */
const GPU_TYPES: Partial<Record<string, number>> = { float32: 1, float16: 10 }

interface GpuSession {
  run(feeds: Record<string, unknown>, fetches: readonly string[]): Promise<Record<string, unknown>>
}

/** Copies tensors with sessions that do nothing else, because onnxruntime-node has no other way. */
export class GpuCopies {
  readonly #sessions = new Map<string, GpuSession>()

  constructor(
    private readonly open: (model: Uint8Array, options: Record<string, unknown>) => Promise<GpuSession>,
    private readonly tensorOf: (tensor: RuntimeTensor) => unknown,
    private readonly errorOf: (cause: unknown) => RuntimeError,
  ) {}

  /** Copies a tensor to the GPU. A tensor that cannot be there is returned as it is. */
  async toGpu(tensor: RuntimeTensor): Promise<RuntimeTensor> {
    const { type, data } = tensor
    if (GPU_TYPES[type] === undefined || data.length === 0) return tensor
    return this.#copy(type, this.tensorOf(tensor), 'gpu-buffer')
  }

  async toHost(tensor: RuntimeTensor): Promise<RuntimeTensor> {
    const { type, data, dims } = await this.#copy(tensor.type, tensor, 'cpu')
    return { type, data: withoutFloat16Array(data), dims }
  }

  async #copy(type: TensorType, tensor: unknown, location: string): Promise<RuntimeTensor> {
    const key = `${type} ${location}`
    try {
      let session = this.#sessions.get(key)
      if (session === undefined) {
        const options = { executionProviders: ['webgpu'], preferredOutputLocation: { to: location } }
        session = await this.open(identity(GPU_TYPES[type] as number), options)
        this.#sessions.set(key, session)
      }
      return (await session.run({ from: tensor }, ['to'])).to as RuntimeTensor
    } catch (cause) {
      throw this.errorOf(cause)
    }
  }
}

/** Returns a ModelProto whose only node is Identity, from → to. */
function identity(elemType: number): Uint8Array {
  const field = (tag: number, ...bytes: readonly number[]) => [8 * tag + 2, bytes.length, ...bytes]
  const text = (tag: number, value: string) => field(tag, ...new TextEncoder().encode(value))
  const value = (tag: number, name: string) => field(tag, ...text(1, name), ...field(2, ...field(1, 8, elemType)))
  const node = field(1, ...text(1, 'from'), ...text(2, 'to'), ...text(4, 'Identity'))
  const graph = field(7, ...node, ...text(2, 'copy'), ...value(11, 'from'), ...value(12, 'to'))
  return Uint8Array.of(8, 8, ...graph, ...field(8, 16, 17))
}
