// The kinds of values that callers pass as sources. The generated tables that check options (gen/options.ts) use them.

import { anyOf, hasMethods, isObject, type Kind, kind, listOf, NAME, ranged } from '../core/base/options.js'
import { isDataSource, isDirectory } from '../files/data/row.js'
import { FILES } from '../files/io/web/directories.js'
import { isAdapter } from '../lora/run-adapter.js'

export const isPath = (value: unknown): value is string => typeof value === 'string' && value !== ''
export const isBlob = (value: unknown): value is Blob => hasMethods(value, 'slice', 'arrayBuffer')

export const SOURCE: Kind = kind(
  'a path, org/name, a URL, picked files or a Directory',
  (value) =>
    isPath(value) || isDirectory(value) || (FILES.accepts(value) && [...(value as Iterable<unknown>)].length > 0),
)

export const TARGET: Kind = kind(
  'a path or a Directory that can be written',
  (value) => isPath(value) || (isDirectory(value) && hasMethods(value, 'create')),
)

export const DATA: Kind = kind(
  'records, or the path of a file or folder of them',
  (value) => isPath(value) || isBlob(value) || isDataSource(value),
)

export const MODEL: Kind = kind(
  'a model of loadModel',
  (value) => isObject(value) && 'onnx' in value && 'runtime' in value,
)

export const TOKEN: Kind = anyOf(NAME, ranged('an integer of at least 0'))

export const RUNTIME: Kind = kind(
  'nodeRuntime(), webRuntime(url), or { module } with the imported ONNX Runtime',
  (value) =>
    isObject(value) &&
    ('module' in value
      ? isObject(value.module) && 'InferenceSession' in value.module
      : typeof value.specifier === 'string' && hasMethods(value, 'spawn')),
)

export const ADAPTER: Kind = kind('a LoraAdapter', isAdapter)

export const ADAPTER_SOURCE: Kind = anyOf(ADAPTER, SOURCE)

/** Adapters by name. Each is checked when it is opened, because the message can then say its name. */
export const NAMED_ADAPTERS: Kind = kind(
  'an object of names with LoraAdapters, paths or folders',
  (value) => isObject(value) && !ADAPTER.accepts(value) && !hasMethods(value, 'then'),
)

const ADAPTER_TO_MERGE = kind(
  'a path, a folder, a LoraAdapter, or { adapter, weight }',
  (value) =>
    ADAPTER_SOURCE.accepts(value) ||
    (isObject(value) &&
      ADAPTER_SOURCE.accepts(value.adapter) &&
      ['undefined', 'number'].includes(typeof value.weight) &&
      Object.keys(value).every((key) => key === 'adapter' || key === 'weight')),
)

export const ADAPTER_LIST: Kind = kind(
  `a list, each ${ADAPTER_TO_MERGE.expected}`,
  (value) => listOf(ADAPTER_TO_MERGE).accepts(value) && (value as unknown[]).length > 0,
)

export const ADAPTERS: Kind = kind(
  `${ADAPTER_TO_MERGE.expected}; or a list of them`,
  (value) => ADAPTER_TO_MERGE.accepts(value) || ADAPTER_LIST.accepts(value),
)
