// Short digests of a run's parts: a run may be resumed only with the parts that it was started with, else its result
// would be neither of the two.

import type { ByteSource } from '../../base/bytes.js'
import { MismatchError } from '../../base/errors.js'
import { serializeModel } from '../../formats/onnx/model.js'
import type { Model } from '../../graph/model-folder.js'
import type { LoraAdapter } from '../../lora/adapter.js'
import type { Examples, OpenTask } from '../../tasks/task.js'
import { type TrainSettings, usesBest } from '../settings.js'

const WITHOUT_EFFECT: ReadonlySet<keyof TrainSettings> = new Set([
  'epochs',
  'maxSteps',
  'device',
  'threads',
  'lowMemory',
  'fast',
  'saveEvery',
])

export const BASE_WEIGHTS = 'base weights'

export interface FingerprintParts {
  model: Model
  adapter: LoraAdapter
  task: string
  taskOptions: Readonly<Record<string, unknown>> | undefined
  open: OpenTask
  examples: Examples<unknown>
  evalExamples: Examples<unknown> | undefined
  settings: TrainSettings
  totalSteps: number
}

const STEPS = 'number of steps, from `maxSteps` or `epochs`'

export function stepsIn(fingerprint: Readonly<Record<string, string>>): number {
  return Number(fingerprint[STEPS])
}

/** Files of weights up to this size are hashed whole, larger ones in samples: half a second at most. */
const WHOLE_BYTES = 64 << 20
const SAMPLES = 256
const SAMPLE_BYTES = 64 << 10

/** Large files of weights are sampled: a change of a few weights can go unnoticed. */
export async function fingerprintOf(parts: FingerprintParts): Promise<Record<string, string>> {
  const { model, adapter, task, taskOptions = {}, open, examples, evalExamples, settings, totalSteps } = parts
  const weights = new Hash()
  for (const { name, weightA, weightB, magnitude } of adapter.parts('linear')) {
    weights.add(new TextEncoder().encode(name)).add(bytesOf(weightA.data)).add(bytesOf(weightB.data))
    if (magnitude !== undefined) weights.add(bytesOf(magnitude))
  }
  for (const { name, weight } of adapter.parts('replacement', 'token-rows')) {
    weights.add(new TextEncoder().encode(name)).add(bytesOf(weight.data))
  }
  const { peftFields, ...config } = adapter.config
  const entries: [string, unknown][] = [
    ...Object.entries(settings).filter(
      ([key]) => !WITHOUT_EFFECT.has(key as keyof TrainSettings) && (key !== 'evalEvery' || usesBest(settings)),
    ),
    ...Object.entries(config),
    ['task', task],
    ...Object.entries(taskOptions).map(([key, value]): [string, unknown] => [`option ${key} of the task`, value]),
    [STEPS, totalSteps],
    ['model', new Hash().add(serializeModel(model.onnx.proto)).digest()],
    [BASE_WEIGHTS, await weightsDigest(model.onnx.files.values())],
    ['data', digestOf(open, examples)],
    ['evaluation data', evalExamples && digestOf(open, evalExamples)],
    ['adapter', weights.digest()],
  ]
  return Object.fromEntries(entries.map(([key, value]) => [key, JSON.stringify(value) ?? 'none']))
}

function digestOf(open: OpenTask, examples: Examples<unknown>): string {
  const hash = new Hash()
  for (const example of examples) for (const part of open.content(example)) hash.add(part)
  return hash.digest()
}

/** `isLonger`: the number of steps may differ. */
export function checkFingerprint(
  stored: Readonly<Record<string, string>>,
  now: Record<string, string>,
  where: string,
  isLonger = false,
) {
  for (const [part, value] of Object.entries(now)) {
    const before = stored[part] ?? 'none'
    if (before === value || (isLonger && part === STEPS)) continue
    throw new MismatchError({
      where,
      what: `the run to resume was started with another ${part}`,
      expected: before,
      got: value,
      hint: 'Resume with the options, data and weights of the first start, or overwrite the run',
    })
  }
}

export async function weightsDigest(files: Iterable<ByteSource>): Promise<string> {
  const hash = new Hash()
  for (const source of files) {
    const { byteLength } = source
    const isWhole = byteLength <= WHOLE_BYTES
    const count = isWhole ? Math.ceil(byteLength / SAMPLE_BYTES) : SAMPLES
    const stride = isWhole ? SAMPLE_BYTES : (byteLength - SAMPLE_BYTES) / (SAMPLES - 1)
    for (let i = 0; i < count; i++) {
      const start = Math.floor(i * stride)
      hash.add(await source.read(start, Math.min(SAMPLE_BYTES, byteLength - start)))
    }
    hash.add(new TextEncoder().encode(String(byteLength)))
  }
  return hash.digest()
}

/** Two FNV-1a hashes side by side: no protection against an attack. */
class Hash {
  #a = 0x811c9dc5
  #b = 0x9e3779b9

  add(values: Uint8Array | Int32Array): this {
    let [a, b] = [this.#a, this.#b]
    for (let i = 0; i < values.length; i++) {
      a = Math.imul(a ^ values[i], 0x01000193)
      b = Math.imul(b ^ values[i] ^ (b >>> 13), 0x01000193)
    }
    this.#a = Math.imul(a ^ values.length, 0x01000193)
    this.#b = Math.imul(b ^ values.length, 0x01000193)
    return this
  }

  digest(): string {
    return [this.#a, this.#b].map((word) => (word >>> 0).toString(16).padStart(8, '0')).join('')
  }
}

function bytesOf(array: Float32Array | Float64Array): Uint8Array {
  return new Uint8Array(array.buffer, array.byteOffset, array.byteLength)
}
