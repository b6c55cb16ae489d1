// config.json of a result as transformers.js reads it: which type the graph is in, and how many data files it has.

import { parsePythonJson } from '../../base/bytes.js'
import { FormatError } from '../../base/errors.js'
import { setMember } from '../../formats/json-edit.js'
import { dtypeOf } from '../../graph/graph-file.js'

const MEMBER = 'transformers.js_config'

/** A graph of a result. */
interface WrittenGraph {
  /** In the model's folder. */
  readonly path: string
  /** How many it has beside it: NAME_data, NAME_data_1, … */
  readonly dataFiles: number
}

/** config.json with the types and data files of all graphs of a result. */
export function editForHub(text: string, graphs: readonly WrittenGraph[], where: string): string {
  let config: unknown
  try {
    config = parsePythonJson(text)
  } catch (cause) {
    throw new FormatError({ where, what: 'not valid JSON', cause })
  }
  if (!isObject(config)) return text
  const before = isObject(config[MEMBER]) ? config[MEMBER] : {}
  const own: Record<string, unknown> = { ...before }
  const withData = graphs.filter(({ dataFiles }) => dataFiles > 0)
  if (withData.length > 0) {
    own.use_external_data_format = Object.fromEntries(withData.map(({ path, dataFiles }) => [nameOf(path), dataFiles]))
  } else delete own.use_external_data_format
  const dtypes = graphs.map(({ path }) => dtypeOf(path))
  const [first] = dtypes
  // Without a word transformers.js takes fp32, and q8 in browsers without a GPU.
  const isTold = before.dtype !== undefined || dtypes.some((dtype) => dtype !== 'fp32')
  if (isTold && first !== undefined && dtypes.every((dtype) => dtype === first)) own.dtype = first
  if (JSON.stringify(own) === JSON.stringify(before)) return text
  return setMember(text, [MEMBER], own)
}

function nameOf(path: string): string {
  return path.slice(path.lastIndexOf('/') + 1)
}

function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value)
}
