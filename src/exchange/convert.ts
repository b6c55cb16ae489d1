// An adapter from one format into another. What a source is, its content says: names of files decide nothing but which file is looked at.

import { type ByteSource, type Directory, readAll, writeThrough } from '../base/bytes.js'
import type { FloatDtype } from '../base/dtype.js'
import { ConfigError, FileError, FormatError, listed } from '../base/errors.js'
import { parseJson, toPlain } from '../formats/json.js'
import { isOnnxAdapter } from '../formats/onnx-adapter/read.js'
import { sniff } from '../formats/sniff.js'
import { LoraAdapter } from '../lora/adapter.js'
import { loadAdapter, saveAdapter } from '../peft/adapter-folder.js'
import { type GgufBase, readBase } from './gguf/base.js'
import { readGgufAdapter } from './gguf/read.js'
import { writeGgufAdapter } from './gguf/write.js'
import { isMlxConfig, MLX_CONFIG, MLX_WEIGHTS, readMlx, writeMlx } from './mlx.js'
import { readOnnxLora, writeOnnxLora } from './onnx-adapter.js'

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

/** Types that factors are written in; `Q8_0` only in GGUF. */
export type ConvertedDtype = FloatDtype | 'Q8_0' | 'keep'

/** A place in a folder: a file of it, or the folder itself. */
export interface Place {
  readonly directory: Directory
  readonly file: string | undefined
}

/** What {@link convert} does. */
export interface ConvertSettings {
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
export async function convert(
  source: LoraAdapter | Place,
  { to, out, base, dtype }: ConvertSettings,
): Promise<ConvertReport> {
  if (dtype === 'Q8_0' && to !== 'gguf') {
    throw new ConfigError({
      where: 'outDtype',
      what: `Q8_0 is a type of GGUF, and not of ${to}`,
      expected: 'F32, F16, BF16 or keep',
    })
  }
  const found = source instanceof LoraAdapter ? { adapter: source, from: 'memory' as const } : await read(source, base)
  const { adapter, from } = found
  if (adapter.size === 0) throw new FormatError({ where: 'adapter', what: 'has no layers' })
  const target = { directory: out.directory, file: out.file ?? FILE_NAMES[to] }
  const { layers, notes = [] } = await write(adapter, to, target, dtype, base)
  const name = target.file === undefined ? out.directory.name : `${out.directory.name}/${target.file}`
  return { from, to, out: name, layers, notes }
}

async function write(
  adapter: LoraAdapter,
  to: AdapterFormat,
  { directory, file }: Place,
  dtype: ConvertedDtype,
  base: Place | undefined,
): Promise<{ layers: number; notes?: string[] }> {
  const float = dtype === 'Q8_0' ? 'keep' : dtype
  if (to === 'mlx' || to === 'peft') {
    if (file !== undefined) {
      throw new ConfigError({
        where: 'out',
        what: `${to === 'mlx' ? 'mlx-lm’s' : 'PEFT’s'} format is a folder`,
        got: file,
      })
    }
    if (to === 'mlx') return writeMlx(adapter, directory, float)
    await saveAdapter(adapter, directory, float === 'keep' ? {} : { dtype: float })
    return { layers: adapter.size }
  }
  if (await directory.has(file!)) {
    throw new FileError({ where: `${directory.name}/${file}`, what: 'exists already', hint: 'Choose another place' })
  }
  const opened = to === 'gguf' ? await openBase(base) : undefined
  let report: { layers: number; notes?: string[] } = { layers: 0 }
  await writeThrough(directory, file!, async (sink) => {
    report =
      opened !== undefined
        ? await writeGgufAdapter(adapter, opened, sink, dtype)
        : await writeOnnxLora(adapter, sink, float)
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

async function read(place: Place, base: Place | undefined): Promise<{ adapter: LoraAdapter; from: AdapterFormat }> {
  const file = place.file ?? (await onlyFile(place.directory))
  if (
    file === undefined ||
    /(^|\/)(adapter_config\.json|adapter_model\.(safetensors|bin)|adapters\.safetensors)$/.test(file)
  ) {
    return readFolder(place.directory)
  }
  const source = await place.directory.open(file)
  try {
    const from = await formatOf(source)
    if (from === 'gguf') return { adapter: await readGgufAdapter(source, await openBase(base)), from }
    return { adapter: await readOnnxLora(source), from }
  } finally {
    await source.close()
  }
}

async function readFolder(directory: Directory): Promise<{ adapter: LoraAdapter; from: AdapterFormat }> {
  if ((await directory.has(MLX_CONFIG)) && (await directory.has(MLX_WEIGHTS))) {
    const source = await directory.open(MLX_CONFIG)
    try {
      if (isMlxConfig(toPlain(parseJson(await readAll(source), source.name))))
        return { adapter: await readMlx(directory), from: 'mlx' }
    } finally {
      await source.close()
    }
  }
  return { adapter: await loadAdapter(directory), from: 'peft' }
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
