// Turns feeds into plain objects: the getters of ONNX Runtime's tensors are lost on the way to a worker.

import { ConfigError, didYouMean, MismatchError, messageOf, UnsupportedError } from '../core/base/errors.js'
import { checkArgument, isObject, kind, listOf, OBJECT } from '../core/base/options.js'
import { cacheLayout, emptyTensor, isCacheInput, isState } from '../model/inputs/cache.js'
import { HIDDEN_STATES, PIXELS, STATES_MASK } from '../model/inputs/family.js'
import { ones, roleFeeds, splitInputs } from '../model/inputs/roles.js'
import { VECTORS } from '../model/inputs/tokens.js'
import type { ValueInfoProto } from '../onnx/format/tensors.js'
import {
  type Feeds,
  type RuntimeTensor,
  TENSOR_TYPES,
  type TensorData,
  type TensorType,
  withoutFloat16Array,
} from '../onnx/runtime/runtime.js'
import type { Graph } from '../onnx/view/graph.js'
import { entryOf } from '../onnx/view/operators.js'
import { dimsOfInput, typeOf } from '../onnx/view/value-info.js'

export { floatsOf } from '../onnx/runtime/runtime.js'

const TENSOR = kind('a tensor: an object with type, data and dims', isObject)

const DIMS = listOf(kind('an integer of at least 0', (value) => Number.isSafeInteger(value) && (value as number) >= 0))

const DATA = kind(
  'a typed array',
  (value) => ArrayBuffer.isView(value) && Object.prototype.toString.call(value) !== '[object DataView]',
)

export function plainFeeds(feeds: Feeds, inputNames: readonly string[]): Feeds {
  checkArgument(feeds, OBJECT, 'feeds')
  return Object.fromEntries(
    Object.entries(feeds).map(([name, tensor]) => {
      checkName('input', name, inputNames)
      return [name, plainTensor(name, tensor)]
    }),
  )
}

const PIXEL_MASK = 'pixel_mask'

/**
 * Fills in what the caller leaves out: masks of ones, positions that count them, token types of 0, the branch of a
 * merged decoder, and empty caches. Inputs of unknown meaning are left to the caller.
 */
export function completeFeeds(graph: Graph, feeds: Feeds): Feeds {
  const { [VECTORS]: vectors, [HIDDEN_STATES]: states, [PIXELS]: pixels } = feeds
  const ids = entryOf(feeds, 'input_ids')
  const { roles, others } = splitInputs({
    inputs: graph.inputs.filter(({ name }) => entryOf(feeds, name) === undefined),
  })
  const completed: Record<string, RuntimeTensor> = { ...feeds }
  for (const input of others) {
    const type = typeOf(input) === 'bool' ? 'bool' : 'int64'
    if (input.name === STATES_MASK && states !== undefined) completed[input.name] = ones(type, states.dims.slice(0, 2))
    if (input.name !== PIXEL_MASK || pixels?.dims.length !== 4) continue
    completed[input.name] = ones(type, [pixels.dims[0], ...pixels.dims.slice(2)])
  }
  if (ids?.dims.length !== 2 && vectors?.dims.length !== 3) return completed
  const [batch, sequence] = (ids ?? vectors).dims
  const grows = (input: ValueInfoProto) => isCacheInput(input) && !isState(graph, input)
  const fedCache = graph.inputs.find((input) => grows(input) && entryOf(feeds, input.name)?.dims.length === 4)
  const past = fedCache === undefined ? 0 : (feeds[fedCache.name].dims.at(-2) ?? 0)
  const inputIds = (ids?.data ?? []) as ArrayLike<bigint>
  const mask = feeds.attention_mask?.data as ArrayLike<bigint> | undefined
  const attentionMask = mask ?? new Uint8Array(batch * (past + sequence)).fill(1)
  const empty = past > 0 ? [] : others.filter(isCacheInput)
  return {
    ...completed,
    ...roleFeeds(roles, { batch, sequence, past, inputIds, attentionMask }),
    ...Object.fromEntries(empty.map((input) => [input.name, emptyTensor(cacheLayout(graph, input), batch)])),
  }
}

export function checkName(role: 'input' | 'output', name: string, names: readonly string[]): void {
  if (names.includes(name)) return
  throw new MismatchError({
    where: `${role} ${JSON.stringify(name)}`,
    what: `the model has no such ${role}`,
    expected: names.join(', '),
    hint: didYouMean(name, names),
  })
}

function plainTensor(name: string, tensor: RuntimeTensor): RuntimeTensor {
  const where = `input ${name}`
  checkArgument(tensor, TENSOR, where)
  const { type, dims } = tensor
  let data: unknown
  try {
    data = tensor.data
  } catch (cause) {
    const reason = messageOf(cause)
    throw new ConfigError({ where, what: `its data cannot be read: ${reason}`, hint: 'Download it first', cause })
  }
  checkArgument(type, TENSOR_TYPES, `${where}: type`)
  checkArgument(data, DATA, `${where}: data`)
  checkArgument(dims, DIMS, `${where}: dims`)
  checkElements(where, { type, data: data as TensorData, dims })
  return { type, data: withoutFloat16Array(data), dims: [...dims] }
}

function checkElements(where: string, { type, data, dims }: RuntimeTensor): void {
  const name = Object.prototype.toString.call(data).slice(8, -1)
  const names = arraysOf(type)
  if (!names.includes(name)) {
    throw new ConfigError({
      where: `${where}: data`,
      what: `not the data of a tensor of ${type}`,
      expected: names.join(' or '),
      got: name,
    })
  }
  const count = dims.reduce((product, size) => product * size, 1)
  if (data.length === count) return
  throw new ConfigError({
    where: `${where}: data`,
    what: 'the number of elements differs from what dims say',
    expected: `${count}, the product of [${dims.join(', ')}]`,
    got: `${data.length}`,
  })
}

function arraysOf(type: TensorType): string[] {
  if (type === 'float16') return ['Float16Array', 'Uint16Array']
  if (type === 'bool') return ['Uint8Array']
  const big = type === 'int64' || type === 'uint64' ? 'Big' : ''
  return [`${big}${type[0].toUpperCase()}${type.slice(1)}Array`]
}

export function batchOf(feeds: Feeds): number | undefined {
  const ids = feeds.input_ids ?? feeds.pixel_values ?? feeds.inputs_embeds ?? Object.values(feeds)[0]
  return ids?.dims[0]
}

/**
 * Throws UnsupportedError if an output has another number of axes than the model says. Then some layer takes the rows
 * of all texts as a single matrix, and adapters cannot differ by row.
 */
export function checkRanks(graph: Graph, outputs: Readonly<Record<string, RuntimeTensor>>): void {
  for (const output of graph.outputs) {
    const declared = dimsOfInput(output).length
    const got = outputs[output.name]?.dims
    if (got === undefined || declared === 0 || got.length === declared) continue
    throw new UnsupportedError({
      where: `output ${output.name}`,
      what: 'this graph cannot run rows with different adapters together',
      expected: `${declared} axes`,
      got: `(${got.join(', ')})`,
      hint: 'Run the rows of one adapter at a time',
    })
  }
}
