// Which file of a model's folder holds a graph in the type that is asked for, by the names that transformers.js gives
// them: onnx/{graph}{suffix}.onnx.

import { type Directory, readJson } from '../base/bytes.js'
import { ConfigError, FileError, nearMisses } from '../base/errors.js'

/** The suffix behind the graph's name, by dtype: as in DEFAULT_DTYPE_SUFFIX_MAPPING of transformers.js 4. */
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

/** All of them. */
export const GRAPH_DTYPES = Object.keys(SUFFIXES) as readonly GraphDtype[]

/**
 * One type for all graphs of a model, or an object from graph name to type. `auto` uses the type in config.json, or
 * fp32.
 */
export type DtypeChoice = GraphDtype | 'auto' | Readonly<Record<string, GraphDtype | 'auto'>>

/** Folders that hold graphs, first match first. */
const FOLDERS = ['onnx/', '']

/** Which graph is looked for. */
export interface GraphWanted {
  /** The file's name without suffix and ending. Default: `model`. */
  readonly name?: string | undefined
  /** Default: `auto`. */
  readonly dtype?: DtypeChoice | undefined
  /** config.json, whose `transformers.js_config` may choose. */
  readonly config?: Readonly<Record<string, unknown>> | undefined
}

/** The role of a graph in its model. */
export type GraphRole =
  | 'model'
  | 'decoder'
  | 'decoder_with_past'
  | 'encoder'
  | 'embed_tokens'
  | 'vision_encoder'
  | 'audio_encoder'

/** The files of models of several graphs, as transformers.js and optimum name them; first match first. */
const PARTS: Readonly<Record<Exclude<GraphRole, 'model'>, readonly string[]>> = {
  decoder: ['decoder_model_merged', 'decoder_model'],
  decoder_with_past: ['decoder_with_past_model'],
  encoder: ['encoder_model'],
  embed_tokens: ['embed_tokens'],
  vision_encoder: ['vision_encoder'],
  audio_encoder: ['audio_encoder'],
}

/**
 * The graphs of a model by their role: one, or those of encoder, decoder and what else there is.
 *
 * @throws as {@link findGraph} when there is none
 */
export async function findGraphs(
  directory: Directory,
  wanted: Omit<GraphWanted, 'name'>,
): Promise<Partial<Record<GraphRole, string>>> {
  const whole = await pathOf(directory, { ...wanted, name: 'model' })
  if (whole !== undefined) return { model: whole }
  const graphs: Partial<Record<GraphRole, string>> = {}
  for (const [role, names] of Object.entries(PARTS) as [GraphRole, readonly string[]][]) {
    for (const name of names) graphs[role] ??= await pathOf(directory, { ...wanted, name })
    if (graphs[role] === undefined) delete graphs[role]
  }
  if (Object.keys(graphs).length === 0) return { model: await findGraph(directory, wanted) }
  for (const [role, names] of Object.entries(PARTS) as [GraphRole, readonly string[]][]) {
    if (graphs[role] === undefined && role !== 'decoder_with_past') await refuseOtherDtype(directory, names, wanted)
  }
  return graphs
}

/**
 * Throws FileError for a part that is there in other types than the one that is asked for: without it the model is not
 * whole.
 */
async function refuseOtherDtype(
  directory: Directory,
  names: readonly string[],
  wanted: Omit<GraphWanted, 'name'>,
): Promise<void> {
  for (const name of names) {
    const [there] = await graphDtypes(directory, name)
    if (there === undefined) continue
    throw new FileError({
      where: directory.name,
      what: `no graph ${name} in ${wantedDtype({ ...wanted, name })}`,
      expected: pathsOf(name, wantedDtype({ ...wanted, name }))[0],
      got: (await graphDtypes(directory, name)).join(', '),
      hint: `Choose a dtype for each graph, such as { ${name}: '${there}' }`,
    })
  }
}

/** The role of a graph whose file is named. */
export function roleOf(path: string): GraphRole {
  const file = path.slice(path.lastIndexOf('/') + 1)
  const name = Object.values(SUFFIXES)
    .reduce((rest, suffix) => rest.replace(`${suffix}.onnx`, '.onnx'), file)
    .replace(/\.onnx$/, '')
  const part = Object.entries(PARTS).find(([, names]) => names.includes(name))
  return part === undefined ? 'model' : (part[0] as GraphRole)
}

/** The type that a graph's name tells; undefined for other names. */
export function dtypeOf(path: string): GraphDtype | undefined {
  const file = path.slice(path.lastIndexOf('/') + 1)
  const named = (Object.entries(SUFFIXES) as [GraphDtype, string][]).filter(([, suffix]) =>
    file.endsWith(`${suffix}.onnx`),
  )
  // fp32 has no suffix, which every name ends in.
  return named.sort((a, b) => b[1].length - a[1].length)[0]?.[0]
}

/**
 * The path of a graph.
 *
 * @throws ConfigError for an unknown dtype; FileError naming the types that there are, when there is no graph of this
 *   one
 */
export async function findGraph(directory: Directory, { name = 'model', dtype, config }: GraphWanted): Promise<string> {
  const path = await pathOf(directory, { name, dtype, config })
  if (path !== undefined) return path
  const wanted = wantedDtype({ name, dtype, config })
  const there = await graphDtypes(directory, name)
  if (there.length > 0) {
    throw new FileError({
      where: directory.name,
      what: `no ${name === 'model' ? 'graph' : `graph ${name}`} in ${wanted}`,
      expected: pathsOf(name, wanted)[0],
      got: there.join(', '),
      hint: `Choose the dtype ${there.join(' or ')}`,
    })
  }
  const files = await directory.list()
  const hasCheckpoint = files.some((file) => /^(?!adapter_).*\.safetensors(\.index\.json)?$/.test(file))
  throw new FileError({
    where: directory.name,
    what: 'no ONNX model in this folder',
    expected: pathsOf(name, wanted).join(' or '),
    hint: hasCheckpoint
      ? 'Its safetensors checkpoint can be merged, but not run: take an ONNX export, such as those of onnx-community on the Hub'
      : 'Name a folder as on the Hub for transformers.js, or the .onnx file itself',
  })
}

async function pathOf(directory: Directory, { name = 'model', ...wanted }: GraphWanted): Promise<string | undefined> {
  for (const path of pathsOf(name, wantedDtype({ name, ...wanted }))) if (await directory.has(path)) return path
  return undefined
}

function wantedDtype({ name = 'model', dtype, config }: GraphWanted): GraphDtype {
  const asked = typeof dtype === 'object' ? (Object.hasOwn(dtype, name) ? dtype[name] : undefined) : dtype
  return asked === undefined || asked === 'auto' ? (configuredDtype(config, name) ?? 'fp32') : checkDtype(asked)
}

/** The types in which a folder has a graph. */
export async function graphDtypes(directory: Directory, name = 'model'): Promise<GraphDtype[]> {
  const there = await Promise.all(
    GRAPH_DTYPES.map(async (dtype) => {
      for (const path of pathsOf(name, dtype)) if (await directory.has(path)) return [dtype]
      return []
    }),
  )
  return there.flat()
}

/**
 * The graphs of a model, of several all: in the type that is asked for, else in that of config.json, else in the first
 * one that there is. None where there is no graph.
 *
 * @throws FileError when there is no graph of the type that is asked for, or one of several is in other types alone
 */
export async function defaultGraphs(directory: Directory, dtype?: DtypeChoice): Promise<string[]> {
  const hasConfig = await directory.has('config.json')
  const config = hasConfig ? ((await readJson(directory, 'config.json')) as Record<string, unknown> | null) : null
  const wanted = { dtype, config: config ?? {} }
  if (dtype !== undefined) return Object.values(await findGraphs(directory, wanted))
  for (const [names, isWhole] of [[['model'], true] as const, [Object.values(PARTS).flat(), false] as const]) {
    for (const name of names) {
      const there = await graphDtypes(directory, name)
      if (there.length === 0) continue
      const chosen = configuredDtype(wanted.config, name) ?? 'fp32'
      const own = there.includes(chosen) ? chosen : there[0]
      if (isWhole) return [await findGraph(directory, { dtype: own })]
      return Object.values(await findGraphs(directory, { ...wanted, ...(own !== chosen && { dtype: own }) }))
    }
  }
  return []
}

function pathsOf(name: string, dtype: GraphDtype): string[] {
  return FOLDERS.map((folder) => `${folder}${name}${SUFFIXES[dtype]}.onnx`)
}

/** The dtype that config.json chooses; an unknown word chooses nothing, as in transformers.js. */
export function configuredDtype(
  config: Readonly<Record<string, unknown>> | undefined,
  name = 'model',
): GraphDtype | undefined {
  const own = config?.['transformers.js_config'] as { dtype?: unknown } | null | undefined
  const chosen = own?.dtype
  const dtype = typeof chosen === 'object' && chosen !== null ? (chosen as Record<string, unknown>)[name] : chosen
  return isDtype(dtype) ? dtype : undefined
}

function isDtype(value: unknown): value is GraphDtype {
  return typeof value === 'string' && Object.hasOwn(SUFFIXES, value)
}

/** @throws ConfigError with a near miss */
function checkDtype(value: string): GraphDtype {
  if (isDtype(value)) return value
  const near = nearMisses(value, [...GRAPH_DTYPES], 1)[0]
  throw new ConfigError({
    where: 'dtype',
    what: 'no type that graphs are published in',
    expected: `auto, ${GRAPH_DTYPES.join(', ')}`,
    got: JSON.stringify(value),
    ...(near !== undefined && { hint: `Did you mean ${near}?` }),
  })
}
