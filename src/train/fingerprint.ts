// What a run is made of, in short: a run may be resumed only with what it was started with, else its result would be
// neither of the two.

import { MismatchError } from '../base/errors.js'
import { serializeModel } from '../formats/onnx/model.js'
import type { CausalModel } from '../graph/model-folder.js'
import type { LoraAdapter } from '../lora/adapter.js'
import type { Example } from '../text/records.js'
import type { TrainSettings } from './settings.js'

/** Settings that change no weight. */
const WITHOUT_EFFECT: ReadonlySet<keyof TrainSettings> = new Set([
  'epochs',
  'maxSteps',
  'threads',
  'saveEvery',
  'evaluateEvery',
])

export interface RunParts {
  model: CausalModel
  /** As it was before the first step. */
  adapter: LoraAdapter
  examples: readonly Example[]
  settings: TrainSettings
  totalSteps: number
}

/** One short text for each part, under the name that an error calls it. */
export function fingerprintOf({ model, adapter, examples, settings, totalSteps }: RunParts): Record<string, string> {
  const data = new Hash()
  for (const { inputIds, labels } of examples) data.add(inputIds).add(labels)
  const weights = new Hash()
  for (const [name, { weightA, weightB }] of adapter) {
    weights.add(new TextEncoder().encode(name)).add(bytesOf(weightA.data)).add(bytesOf(weightB.data))
  }
  const { peftFields, ...config } = adapter.config
  const entries: [string, unknown][] = [
    ...Object.entries(settings).filter(([key]) => !WITHOUT_EFFECT.has(key as keyof TrainSettings)),
    ...Object.entries(config),
    ['steps', totalSteps],
    ['model', new Hash().add(serializeModel(model.onnx.proto)).digest()],
    ['data', data.digest()],
    ['adapter', weights.digest()],
  ]
  return Object.fromEntries(entries.map(([key, value]) => [key, JSON.stringify(value) ?? 'none']))
}

/** Throws MismatchError naming the first part in which a stored run differs from this one. */
export function checkFingerprint(stored: Readonly<Record<string, string>>, now: Record<string, string>, where: string) {
  for (const [part, value] of Object.entries(now)) {
    if (stored[part] === value) continue
    throw new MismatchError({
      where,
      what: `the run to resume was started with another ${part}`,
      expected: stored[part] ?? 'none',
      got: value,
      hint: 'Resume with what the run was started with, or overwrite it',
    })
  }
}

/** Two FNV-1a hashes side by side: tells apart what was mixed up, and is no protection against an attack. */
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
