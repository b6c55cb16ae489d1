// Short digests of a run's parts. A run may be resumed only with the parts that it was started with: with others, the
// result would be that of no run.

import { MismatchError } from '../../core/base/errors.js'
import { isObject, toJson } from '../../core/base/options.js'
import { Hash, weightsDigest } from '../../model/base-record.js'
import { serializeModel } from '../../onnx/format/model.js'
import { bytesOf } from '../../onnx/format/tensors.js'
import { taskOptionsOf } from '../about-run.js'
import type { Run } from '../run.js'
import { type TrainSettings, usesBest } from '../settings.js'
import type { Examples } from '../tasks/task.js'

const WITHOUT_EFFECT: ReadonlySet<keyof TrainSettings> = new Set([
  'epochs',
  'maxSteps',
  'device',
  'threads',
  'memory',
  'saveEvery',
])

const STEPS = 'number of steps, from `maxSteps` or `epochs`'

export function stepsIn(fingerprint: Readonly<Record<string, string>>): number {
  return Number(fingerprint[STEPS])
}

/** One short text for each part, under the name that an error calls it. */
export async function fingerprintOf(run: Run, totalSteps: number): Promise<Record<string, string>> {
  const { model, adapter, task, options, examples, evalExamples, settings } = run
  const { teacher } = options
  // Reading comes first: meanwhile the session of the steps begins to open.
  const base = await weightsDigest(model.onnx.files.values())
  const weights = new Hash()
  for (const { name, weightA, weightB, magnitude } of adapter.parts('linear', 'embedding')) {
    weights.add(new TextEncoder().encode(name)).add(bytesOf(weightA.data)).add(bytesOf(weightB.data))
    if (magnitude !== undefined) weights.add(bytesOf(magnitude))
  }
  for (const { name, weight } of adapter.parts('replacement', 'token-rows')) {
    weights.add(new TextEncoder().encode(name)).add(bytesOf(weight.data))
  }
  const { peftFields, ...config } = adapter.config
  // A loop of the caller's gives its rates itself.
  const withoutEffect = totalSteps === 0 ? 'learningRate' : usesBest(settings) ? undefined : 'evalEvery'
  const hasEffect = (key: keyof TrainSettings) => !WITHOUT_EFFECT.has(key) && key !== withoutEffect
  const entries: (readonly [string, unknown])[] = [
    ...Object.entries(settings).filter(([key]) => hasEffect(key as keyof TrainSettings)),
    ...Object.entries(config),
    ['task', task.name],
    ...Object.entries(taskOptionsOf(options)).map(([key, value]): [string, unknown] => [
      `option ${key} of the task`,
      value,
    ]),
    ...(teacher === undefined ? [] : [['teacher', 'url' in teacher ? teacher.url : teacher.directory.name] as const]),
    [STEPS, totalSteps],
    ['model', new Hash().add(serializeModel(model.onnx.proto)).digest()],
    ['base weights', base],
    ['data', digestOf(examples)],
    ['evaluation data', evalExamples && digestOf(evalExamples)],
    ['adapter', weights.digest()],
  ]
  return Object.fromEntries(entries.map(([key, value]) => [key, JSON.stringify(value) ?? 'none']))
}

function digestOf(examples: Examples<unknown>): string {
  const hash = new Hash()
  for (const example of examples) for (const part of partsOf(example)) hash.add(part)
  return hash.digest()
}

/** All that training sees of an example: not where it comes from. */
function* partsOf(value: unknown): Generator<Uint8Array> {
  if (ArrayBuffer.isView(value)) yield new Uint8Array(value.buffer, value.byteOffset, value.byteLength)
  else if (Array.isArray(value)) for (const item of value) yield* partsOf(item)
  else if (!isObject(value)) yield new TextEncoder().encode(toJson(value))
  else if (Object.getPrototypeOf(value) === Object.prototype) {
    for (const [name, member] of Object.entries(value)) if (name !== 'where') yield* partsOf(member)
  }
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
