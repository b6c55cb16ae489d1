// Trained tensors, and their moments, on a device: one vector each, which stays there. A step sends three numbers to
// the device, and reads one.

import { elementCount, joinedUp } from '../../base/tensor.js'
import {
  type Feeds,
  freeOnGpu,
  type RuntimeSession,
  type RuntimeTensor,
  type SessionModel,
} from '../../runtime/runtime.js'
import { ADAMW_DEFAULTS } from '../optimizer.js'
import type { DeviceSetup, EngineSetup, EngineState, Trained } from './held.js'

export interface Device extends DeviceSetup {
  /** Outputs of these names stay there. */
  open(model: SessionModel, stay: readonly string[]): Promise<RuntimeSession>
  put(tensor: RuntimeTensor): Promise<RuntimeTensor>
  read(tensor: RuntimeTensor): Promise<RuntimeTensor>
}

type Vectors = Record<'trained' | 'first' | 'second', RuntimeTensor>

export class DeviceWeights implements Trained {
  #adder: RuntimeSession | undefined
  /** The sum of those of the step's runs so far. */
  #gradient: RuntimeTensor | undefined
  #lastGood: RuntimeTensor

  private constructor(
    readonly setup: EngineSetup,
    readonly device: Device,
    readonly update: RuntimeSession,
    private now: Vectors,
    private updates: number,
  ) {
    this.#lastGood = now.trained
  }

  static async start(setup: EngineSetup, state: EngineState, device: Device): Promise<DeviceWeights> {
    const update = await device.open(device.update, ['newTrained', 'newFirst', 'newSecond'])
    const put = (arrays: readonly Float32Array[]) => {
      const data = joinedUp(arrays)
      return device.put({ type: 'float32', data, dims: [data.length] })
    }
    const trained = await put(state.parameters)
    const now = { trained, first: await put(state.firstMoments), second: await put(state.secondMoments) }
    return new DeviceWeights(setup, device, update, now, state.updates)
  }

  get feeds(): Feeds {
    return { [this.device.input]: this.now.trained }
  }

  get gradients(): readonly string[] {
    return [this.device.gradient]
  }

  async add(outputs: Readonly<Record<string, RuntimeTensor>>, isFirst: boolean): Promise<void> {
    const gradient = outputs[this.device.gradient]
    const before = this.#gradient
    this.#gradient = gradient
    if (before === undefined || isFirst) return
    this.#adder ??= await this.device.open(this.device.add, ['sum'])
    this.#gradient = (await this.#adder.run({ a: before, b: gradient })).sum
    freeOnGpu(before, gradient)
  }

  async step(loss: number, learningRate: number): Promise<number> {
    const { beta1, beta2, weightDecay } = { ...ADAMW_DEFAULTS, ...this.setup.optimizer }
    const updates = this.updates + 1
    const now = this.now
    const gradient = this.#gradient as RuntimeTensor
    const { norm, newTrained, newFirst, newSecond } = await this.update.run({
      ...now,
      gradient,
      step: scalar(learningRate / (1 - beta1 ** updates)),
      decay: scalar(learningRate * weightDecay),
      correction: scalar(1 / Math.sqrt(1 - beta2 ** updates)),
    })
    freeOnGpu(gradient)
    const gradientNorm = norm.data[0] as number
    if (Number.isFinite(loss)) {
      if (this.#lastGood !== now.trained) freeOnGpu(this.#lastGood)
      this.#lastGood = now.trained
    }
    if (Number.isFinite(loss) && Number.isFinite(gradientNorm)) {
      this.now = { trained: newTrained, first: newFirst, second: newSecond }
      this.updates = updates
      freeOnGpu(now.first, now.second)
    } else freeOnGpu(newTrained, newFirst, newSecond)
    return gradientNorm
  }

  async state(): Promise<EngineState> {
    const { first, second } = this.now
    const [firstMoments, secondMoments] = [await this.#read(first), await this.#read(second)]
    return { parameters: await this.parameters(), firstMoments, secondMoments, updates: this.updates }
  }

  parameters(): Promise<Float32Array[]> {
    return this.#read(this.now.trained)
  }

  lastGood(): Promise<Float32Array[]> {
    return this.#read(this.#lastGood)
  }

  dispose(): void {
    freeOnGpu(...new Set([...Object.values(this.now), this.#lastGood]))
  }

  async #read(vector: RuntimeTensor): Promise<Float32Array[]> {
    const values = (await this.device.read(vector)).data as Float32Array
    let end = 0
    return this.setup.parameters.map(({ shape }) => {
      const start = end
      end += elementCount(shape)
      return values.slice(start, end)
    })
  }
}

function scalar(value: number): RuntimeTensor {
  return { type: 'float32', data: Float32Array.of(value), dims: [] }
}
