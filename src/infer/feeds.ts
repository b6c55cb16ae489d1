// What callers feed, checked and made plain: ONNX Runtime's own tensors are objects with getters, which do not survive the way
// into a worker.

import { ConfigError, MismatchError, nearMisses } from '../base/errors.js'
import { checkArgument, describe, isObject, kind, listOf, OBJECT } from '../base/options.js'
import { type Feeds, type RuntimeTensor, TENSOR_TYPES, withoutFloat16Array } from '../runtime/runtime.js'

const DIMS = listOf(kind('an integer of at least 0', (value) => Number.isSafeInteger(value) && (value as number) >= 0))

const DATA = kind(
  'a typed array',
  (value) => ArrayBuffer.isView(value) && Object.prototype.toString.call(value) !== '[object DataView]',
)

/**
 * The feeds as plain tensors.
 *
 * @param inputNames what the model takes
 * @throws MismatchError for a name that the model does not have, ConfigError for what is no tensor
 */
export function plainFeeds(feeds: Feeds, inputNames: readonly string[]): Feeds {
  checkArgument(feeds, OBJECT, 'feeds')
  return Object.fromEntries(
    Object.entries(feeds).map(([name, tensor]) => {
      checkName('input', name, inputNames)
      return [name, plainTensor(name, tensor)]
    }),
  )
}

/** @throws MismatchError for a name that the model does not have */
export function checkName(role: 'input' | 'output' | 'graph', name: string, names: readonly string[]): void {
  if (names.includes(name)) return
  const near = nearMisses(name, names, 1)[0]
  throw new MismatchError({
    where: `${role} ${JSON.stringify(name)}`,
    what: `the model has no such ${role}`,
    expected: names.join(', '),
    ...(near !== undefined && { hint: `Did you mean ${near}?` }),
  })
}

function plainTensor(name: string, tensor: RuntimeTensor): RuntimeTensor {
  const where = `input ${name}`
  if (!isObject(tensor)) {
    throw new ConfigError({
      where,
      what: 'not a tensor',
      expected: 'an object with type, data and dims',
      got: describe(tensor),
    })
  }
  const { type, dims } = tensor
  let data: unknown
  try {
    data = tensor.data
  } catch (cause) {
    const reason = cause instanceof Error ? cause.message : String(cause)
    throw new ConfigError({ where, what: `its data cannot be read: ${reason}`, hint: 'Download it first', cause })
  }
  checkArgument(type, TENSOR_TYPES, `${where}: type`)
  checkArgument(data, DATA, `${where}: data`)
  checkArgument(dims, DIMS, `${where}: dims`)
  return { type, data: withoutFloat16Array(data), dims: [...dims] }
}
