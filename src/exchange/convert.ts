// An adapter from one format into another. What a source is, its content says: names of files decide nothing but which file is looked at.

import { type ByteSource, type Directory, readAll, writeThrough } from '../base/bytes.js'
import type { FloatDtype } from '../base/dtype.js'
import { ConfigError, FileError, FormatError, listed } from '../base/errors.js'
import { Steps, type ToolRun } from '../base/progress.js'
import { parseJson, toPlain } from '../formats/json.js'
import { isOnnxAdapter } from '../formats/onnx-adapter/read.js'
import { sniff } from '../formats/sniff.js'
import { LoraAdapter } from '../lora/adapter.js'
import { loadAdapter, openAdapter, saveAdapter } from '../peft/adapter-folder.js'
import { type GgufBase, readBase } from './gguf/base.js'
import { readGgufAdapter } from './gguf/read.js'
import { writeGgufAdapter } from './gguf/write.js'
import { isMlxConfig, MLX_CONFIG, MLX_WEIGHTS, readMlx, writeMlx } from './mlx.js'
import { readOnnxLora, writeOnnxLora } from './onnx-adapter.js'
import { inFolder, inMemory, type SourceAdapter } from './source.js'

/**
 * - `peft`: a folder with adapter_config.json and adapter_model.safetensors
 * - `gguf`: a file for llama.cpp and what is built on it
 * - `mlx`: a folder for mlx-lm
 * - `onnx-adapter`: a file for ONNX Runtime's own LoRA
 */
export type AdapterFormat = 'peft' | 'gguf' | 'mlx' | 'onnx-adapter'

export const ADAPTER_FORMATS = ['peft', 'gguf', 'mlx', 'onnx-adapter'] as const satisfies AdapterFormat[]

/** The name of a format's file, where the output is a folder. */
export const FILE_NAMES: Partial<Readonly<Record<AdapterFormat, string>>> = {
  gguf: 'adapter.gguf',
  'onnx-adapter': 'adapter.onnx_adapter',
}

/** Types that factors are written in; `q8_0` only in GGUF. */
export type ConvertedDtype = FloatDtype | 'q8_0' | 'keep'

/** A place in a folder: a file of it, or the folder itself. */
export interface Place {
  readonly directory: Directory
  readonly file: string | undefined
}

/** What {@link convert} does. */
export interface ConvertSettings extends ToolRun {
  readonly to: AdapterFormat
  readonly out: Place
  /** The model that the adapter belongs to. */
  readonly base: Place | undefined
  readonly dtype: ConvertedDtype
}

/** What was converted. */
export interface ConvertReport {
  /** The format that the source was found to have; `memory` for an adapter in memory. */
  from: AdapterFormat | 'memory'
  to: AdapterFormat
  /** The folder or file that was written. */
  out: string
  /** Layers, or tensors of the base, that the result changes. */
  layers: number
  /** How the target's rules changed what is stored, but not what it means. */
  notes: string[]
}

/** Converts an adapter, as the public function `convertAdapter` says (index/verbs.ts). */
export async function convert(source: LoraAdapter | Place, settings: ConvertSettings): Promise<ConvertReport> {
  const { to, out, base, dtype } = settings
  if (dtype === 'q8_0' && to !== 'gguf') {
    throw new ConfigError({
      where: 'outDtype',
      what: `q8_0 is a type of GGUF, and not of ${to}`,
      expected: 'fp32, fp16, bf16 or keep',
    })
  }
  const target = { directory: out.directory, file: out.file ?? FILE_NAMES[to] }
  await checkTarget(target, to)
  const name = target.file === undefined ? out.directory.name : `${out.directory.name}/${target.file}`
  const found = source instanceof LoraAdapter ? undefined : await find(source)
  const report = (from: ConvertReport['from'], { layers, notes = [] }: Written): ConvertReport => {
    return { from, to, out: name, layers, notes }
  }
  if (to === 'gguf' && found?.format === 'peft') {
    const opened = await openAdapter(found.place.directory)
    try {
      return report('peft', await writeGguf(inFolder(opened), settings, target))
    } finally {
      await opened.close()
    }
  }
  const adapter = source instanceof LoraAdapter ? source : await read(found!, base)
  return report(found?.format ?? 'memory', await write(adapter, settings, target))
}

interface Written {
  readonly layers: number
  readonly notes?: string[]
}

async function checkTarget({ directory, file }: Place, to: AdapterFormat): Promise<void> {
  if (to === 'mlx' || to === 'peft') {
    if (file === undefined) return
    throw new ConfigError({
      where: 'out',
      what: `${to === 'mlx' ? 'mlx-lm’s' : 'PEFT’s'} format is a folder`,
      got: file,
    })
  }
  if (!(await directory.has(file!))) return
  throw new FileError({ where: `${directory.name}/${file}`, what: 'exists already', hint: 'Choose another place' })
}

async function write(adapter: LoraAdapter, settings: ConvertSettings, target: Place): Promise<Written> {
  const { to, dtype } = settings
  if (adapter.size === 0) throw new FormatError({ where: 'adapter', what: 'has no layers' })
  if (to === 'gguf') return writeGguf(inMemory(adapter), settings, target)
  const { directory, file } = target
  const float = dtype === 'q8_0' ? 'keep' : dtype
  const steps = new Steps(to === 'peft' ? 1 : adapter.size, settings)
  if (to === 'mlx') return writeMlx(adapter, directory, float, steps)
  if (to === 'peft') {
    if (settings.signal?.aborted) throw settings.signal.reason
    await saveAdapter(adapter, directory, float === 'keep' ? {} : { dtype: float })
    await steps.next('adapter_model.safetensors')
    return { layers: adapter.size }
  }
  let report: Written = { layers: 0 }
  await writeThrough(directory, file!, async (sink) => {
    report = await writeOnnxLora(adapter, sink, float, steps)
  })
  return report
}

async function writeGguf(
  adapter: SourceAdapter,
  { base, dtype, ...run }: ConvertSettings,
  { directory, file }: Place,
): Promise<Written> {
  const opened = await openBase(base)
  let report: Written = { layers: 0 }
  await writeThrough(directory, file!, async (sink) => {
    report = await writeGgufAdapter(adapter, opened, sink, dtype, run)
  })
  return report
}

async function openBase(base: Place | undefined): Promise<GgufBase> {
  if (base !== undefined) return readBase(base.directory, base.file)
  throw new ConfigError({
    where: 'base',
    what: 'missing: names and the order of q and k in GGUF depend on the model',
    expected: 'a folder with the model’s config.json, or its GGUF file',
  })
}

/** An adapter's place, and what its content says that it is. */
interface Found {
  readonly place: Place
  readonly format: AdapterFormat
}

async function find(place: Place): Promise<Found> {
  const { directory } = place
  const file = place.file ?? (await onlyFile(directory))
  const isFolder =
    file === undefined ||
    /(^|\/)(adapter_config\.json|adapter_model\.(safetensors|bin)|adapters\.safetensors)$/.test(file)
  if (isFolder) return { place, format: (await isMlxFolder(directory)) ? 'mlx' : 'peft' }
  const source = await directory.open(file)
  try {
    return { place: { directory, file }, format: await formatOf(source) }
  } finally {
    await source.close()
  }
}

async function read({ place: { directory, file }, format }: Found, base: Place | undefined): Promise<LoraAdapter> {
  if (format === 'peft') return loadAdapter(directory)
  if (format === 'mlx') return readMlx(directory)
  const source = await directory.open(file!)
  try {
    return format === 'gguf' ? await readGgufAdapter(source, await openBase(base)) : await readOnnxLora(source)
  } finally {
    await source.close()
  }
}

async function isMlxFolder(directory: Directory): Promise<boolean> {
  if (!(await directory.has(MLX_CONFIG)) || !(await directory.has(MLX_WEIGHTS))) return false
  const source = await directory.open(MLX_CONFIG)
  try {
    return isMlxConfig(toPlain(parseJson(await readAll(source), source.name)))
  } finally {
    await source.close()
  }
}

/** The one file of a folder that has no adapter's config; undefined for a folder of PEFT or mlx-lm. */
async function onlyFile(directory: Directory): Promise<string | undefined> {
  if (await directory.has(MLX_CONFIG)) return undefined
  const files = (await directory.list()).filter((name) => /\.(gguf|onnx_adapter)$/.test(name))
  if (files.length <= 1) return files[0]
  throw new FileError({ where: directory.name, what: 'several adapters', got: listed(files), hint: 'Name the file' })
}

async function formatOf(source: ByteSource): Promise<'gguf' | 'onnx-adapter'> {
  const bytes = await source.read(0, Math.min(8, source.byteLength))
  if (String.fromCharCode(...bytes.subarray(0, 4)) === 'GGUF') return 'gguf'
  if (isOnnxAdapter(bytes)) return 'onnx-adapter'
  const other = await sniff(source)
  throw new FormatError({
    where: source.name,
    what: other === undefined ? 'no adapter of a known format' : `no adapter, but ${other.name}`,
    expected: 'a GGUF or an .onnx_adapter file, or the folder of PEFT or mlx-lm',
  })
}
