// Finds files of graphs by transformers.js's names: onnx/{graph}{suffix}.onnx.

import { type Directory, readJsonIfThere } from '../core/base/bytes.js'
import { ConfigError, didYouMean, FileError } from '../core/base/errors.js'
import { objectOf } from '../core/base/options.js'

/** The suffix of each dtype, as in DEFAULT_DTYPE_SUFFIX_MAPPING of transformers.js 4. */
const SUFFIXES = {
  fp32: '',
  fp16: '_fp16',
  q8: '_quantized',
  int8: '_int8',
  uint8: '_uint8',
  q4: '_q4',
  q4f16: '_q4f16',
  bnb4: '_bnb4',
  q2: '_q2',
  q2f16: '_q2f16',
  q1: '_q1',
  q1f16: '_q1f16',
} as const

/** Weight type of an .onnx file. With `f16` in the name, the model also computes in float16. */
export type GraphDtype = keyof typeof SUFFIXES

const DTYPES = Object.keys(SUFFIXES) as readonly GraphDtype[]

/**
 * One type for all graphs of a model, or an object from graph name to type. `auto` uses the type in config.json, or
 * fp32.
 */
export type DtypeChoice = GraphDtype | 'auto' | Readonly<Record<string, GraphDtype | 'auto'>>

/** Folders in which graphs are searched, in this order. */
const FOLDERS = ['onnx/', '']

interface Wanted {
  readonly dtype?: DtypeChoice | undefined
  /** The contents of config.json. Its `transformers.js_config` may choose the type. */
  readonly config?: Readonly<Record<string, unknown>> | undefined
}

/** Names of transformers.js and optimum by role; the first match counts. */
const PARTS = {
  decoder: ['decoder_model_merged', 'decoder_model'],
  decoder_with_past: ['decoder_with_past_model'],
  encoder: ['encoder_model'],
  embed_tokens: ['embed_tokens'],
  vision_encoder: ['vision_encoder'],
  audio_encoder: ['audio_encoder'],
} satisfies Readonly<Record<string, readonly string[]>>

/** The role of a graph in its model; `model` is a graph of the whole model. */
export type GraphRole = 'model' | keyof typeof PARTS

/** Throws FileError if there is no graph, or if a graph exists only in other types. */
export async function findGraphs(directory: Directory, wanted: Wanted): Promise<Partial<Record<GraphRole, string>>> {
  const find = async (name: string) => {
    for (const path of pathsOf(name, wantedDtype(name, wanted))) if (await directory.has(path)) return path
    return undefined
  }
  const whole = await find('model')
  if (whole !== undefined) return { model: whole }
  const graphs: Partial<Record<GraphRole, string>> = {}
  const lacking: string[] = []
  for (const [role, names] of Object.entries(PARTS) as [GraphRole, readonly string[]][]) {
    for (const name of names) graphs[role] ??= await find(name)
    if (graphs[role] !== undefined) continue
    delete graphs[role]
    if (role !== 'decoder_with_past') lacking.push(...names)
  }
  const isEmpty = Object.keys(graphs).length === 0
  for (const name of isEmpty ? ['model'] : lacking) {
    const there = await graphDtypes(directory, name)
    if (there.length === 0) continue
    const dtype = wantedDtype(name, wanted)
    throw new FileError({
      where: directory.name,
      what: `no ${isEmpty ? 'graph' : `graph ${name}`} in ${dtype}`,
      expected: pathsOf(name, dtype)[0],
      got: there.join(', '),
      hint: isEmpty
        ? `Choose the dtype ${there.join(' or ')}`
        : `Choose a dtype for each graph, such as { ${name}: '${there[0]}' }`,
    })
  }
  if (!isEmpty) return graphs
  const files = await directory.list()
  const hasCheckpoint = files.some((file) => /^(?!adapter_).*\.safetensors(\.index\.json)?$/.test(file))
  throw new FileError({
    where: directory.name,
    what: 'no ONNX model in this folder',
    expected: pathsOf('model', wantedDtype('model', wanted)).join(' or '),
    hint: hasCheckpoint
      ? 'Its safetensors checkpoint can be merged, but not run: take an ONNX export, such as those of onnx-community on the Hub'
      : 'Name a folder as on the Hub for transformers.js, or the .onnx file itself',
  })
}

export function roleOf(path: string): GraphRole {
  const { name } = graphFile(path)
  const part = Object.entries(PARTS).find(([, names]) => names.includes(name))
  return part === undefined ? 'model' : (part[0] as GraphRole)
}

/** onnx/decoder_model_merged_q4.onnx → decoder_model_merged, q4 */
export function graphFile(path: string): { name: string; dtype: GraphDtype | undefined } {
  const file = path.slice(path.lastIndexOf('/') + 1)
  const endings = DTYPES.map((dtype) => ({ dtype, ending: `${SUFFIXES[dtype]}.onnx` }))
  // Takes the longest suffix that matches, because the empty suffix of fp32 matches every name.
  const [found] = endings
    .filter(({ ending }) => file.endsWith(ending))
    .sort((a, b) => b.ending.length - a.ending.length)
  return { name: found === undefined ? file : file.slice(0, -found.ending.length), dtype: found?.dtype }
}

function wantedDtype(name: string, { dtype, config }: Wanted): GraphDtype {
  const asked = typeof dtype === 'object' ? dtype[name] : dtype
  return asked === undefined || asked === 'auto' ? (configuredDtype(name, config) ?? 'fp32') : checkDtype(asked)
}

export async function graphDtypes(directory: Directory, name = 'model'): Promise<GraphDtype[]> {
  const isThere = await Promise.all(
    DTYPES.map(async (dtype) => {
      for (const path of pathsOf(name, dtype)) if (await directory.has(path)) return true
      return false
    }),
  )
  return DTYPES.filter((_, i) => isThere[i])
}

/** Finds graphs in the given type, else in that of config.json, else in the first one there. Throws as findGraphs. */
export async function defaultGraphs(directory: Directory, dtype?: DtypeChoice): Promise<string[]> {
  const wanted = { dtype, config: objectOf(await readJsonIfThere(directory, 'config.json')) }
  if (dtype !== undefined) return Object.values(await findGraphs(directory, wanted))
  for (const name of ['model', ...Object.values(PARTS).flat()]) {
    const there = await graphDtypes(directory, name)
    if (there.length === 0) continue
    const isChosen = there.includes(configuredDtype(name, wanted.config) ?? 'fp32')
    return Object.values(await findGraphs(directory, isChosen ? wanted : { ...wanted, dtype: there[0] }))
  }
  return []
}

/** Returns the `dtype` of graphs, and whether a folder with this config.json opens them without giving it. */
export function dtypeOf(paths: readonly string[], config: Wanted['config']) {
  const files = paths.map(graphFile).map(({ name, dtype = 'fp32' }) => [name, dtype] as const)
  const isDefault = files.every(([name, dtype]) => dtype === wantedDtype(name, { config }))
  const isOne = files.every(([, dtype]) => dtype === files[0][1])
  return { isDefault, dtype: isOne ? files[0][1] : Object.fromEntries(files) }
}

function pathsOf(name: string, dtype: GraphDtype): string[] {
  return FOLDERS.map((folder) => `${folder}${name}${SUFFIXES[dtype]}.onnx`)
}

/** Reads the type in config.json. As in transformers.js, an unknown type is ignored. */
function configuredDtype(name: string, config: Wanted['config']): GraphDtype | undefined {
  const settings = config?.['transformers.js_config'] as { dtype?: unknown } | null | undefined
  const chosen = settings?.dtype
  const dtype = typeof chosen === 'object' && chosen !== null ? (chosen as Record<string, unknown>)[name] : chosen
  return DTYPES.find((known) => known === dtype)
}

function checkDtype(value: string): GraphDtype {
  const known = DTYPES.find((dtype) => dtype === value)
  if (known !== undefined) return known
  throw new ConfigError({
    where: 'dtype',
    what: 'not a type in which graphs are published',
    expected: `auto, ${DTYPES.join(', ')}`,
    got: JSON.stringify(value),
    hint: didYouMean(value, DTYPES),
  })
}
