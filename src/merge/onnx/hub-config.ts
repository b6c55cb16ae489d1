// config.json of a result as transformers.js reads it: which type the graph is in, and how many data files it has.

import { type Directory, readAll, writeFile } from '../../base/bytes.js'
import { FormatError } from '../../base/errors.js'
import { setMember } from '../../formats/json-edit.js'
import { dtypeOf } from '../../graph/graph-file.js'
import { CONFIG_FILE } from '../plan/config-edit.js'

const MEMBER = 'transformers.js_config'

/** Copies config.json with what the result's only graph needs. */
export async function copyConfig(from: Directory, to: Directory, graph: string, dataFiles: number): Promise<void> {
  const source = await from.open(CONFIG_FILE)
  try {
    const text = new TextDecoder().decode(await readAll(source))
    await writeFile(to, CONFIG_FILE, hubConfig(text, graph, dataFiles, source.name))
  } finally {
    await source.close()
  }
}

/**
 * @param text of config.json
 * @param graph path of the graph in the model's folder
 * @param dataFiles how many it has beside it: NAME_data, NAME_data_1, …
 */
export function hubConfig(text: string, graph: string, dataFiles: number, where: string): string {
  let config: unknown
  try {
    config = JSON.parse(text)
  } catch (cause) {
    throw new FormatError({ where, what: 'not valid JSON', cause })
  }
  if (!isObject(config)) return text
  const before = isObject(config[MEMBER]) ? config[MEMBER] : {}
  const file = graph.slice(graph.lastIndexOf('/') + 1)
  const own: Record<string, unknown> = { ...before }
  if (dataFiles > 0) own.use_external_data_format = { [file]: dataFiles }
  else delete own.use_external_data_format
  const dtype = dtypeOf(graph)
  // Without a word transformers.js takes fp32, and q8 in browsers without a GPU.
  if (dtype !== undefined && (dtype !== 'fp32' || before.dtype !== undefined)) own.dtype = dtype
  if (JSON.stringify(own) === JSON.stringify(before)) return text
  return setMember(text, [MEMBER], own)
}

function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value)
}
