// Converts an adapter from one format into another. The format of a source is found from its content, not its name.

import { closing, type Place, requireEmpty, sniff, withSource, writeTogether } from '../base/bytes.js'
import { ConfigError, FileError, FormatError, listed } from '../base/errors.js'
import { LoraAdapter } from '../lora/adapter.js'
import { openAdapter } from '../peft/open.js'
import type { WriteSettings } from './exchange-format.js'
import { ADAPTER_FORMATS, type AdapterFormat, formatOf } from './formats.js'

/** Result of `convertAdapter`. */
export interface ConvertReport {
  /** The format of the source; `memory` for an adapter in memory. */
  from: AdapterFormat | 'memory'
  to: AdapterFormat
  /** The folder or file that was written. */
  out: string
  /** Layers, or tensors of the base, that the result changes. */
  layers: number
  /** How the target's rules changed what is stored, but not what it means. */
  notes: string[]
}

export async function convert(
  source: LoraAdapter | Place,
  { to, out, ...settings }: WriteSettings & { readonly to: AdapterFormat; readonly out: Place },
): Promise<ConvertReport> {
  const { ending, dtypes = [], load } = formatOf(to)
  const allowed = ['fp32', 'fp16', 'bf16', 'keep', ...dtypes]
  if (!allowed.includes(settings.dtype)) {
    const owner = ADAPTER_FORMATS.filter((name) => formatOf(name).dtypes?.includes(settings.dtype))
    throw new ConfigError({
      where: 'outDtype',
      what: `${settings.dtype} is a type of ${owner.join(', ').toUpperCase()}, and not of ${to}`,
      expected: allowed.join(', '),
    })
  }
  const target = await targetOf(out, to, ending)
  const found = source instanceof LoraAdapter ? undefined : await find(source)
  const opening =
    found === undefined ? openAdapter(source as LoraAdapter) : found.format.open(found.place, settings.base)
  return closing(await opening, async (adapter) => {
    if (adapter.parts().length === 0) throw new FormatError({ where: 'adapter', what: 'has no layers' })
    const { directory, file } = target
    const format = await load()
    const { layers, notes = [] } = await (file === undefined
      ? writeTogether(directory, (folder) => format.write(adapter, { directory: folder, file }, settings), true)
      : format.write(adapter, target, settings))
    const name = file === undefined ? directory.name : `${directory.name}/${file}`
    return { from: found?.name ?? 'memory', to, out: name, layers, notes }
  })
}

async function targetOf(out: Place, to: AdapterFormat, ending: string | undefined): Promise<Place> {
  const { directory } = out
  if (ending === undefined) {
    if (out.file === undefined) return requireEmpty(directory).then(() => out)
    throw new ConfigError({ where: 'out', what: `the format ${to} is a folder`, got: out.file })
  }
  const file = out.file ?? `adapter${ending}`
  if (!(await directory.has(file))) return { directory, file }
  throw new FileError({ where: `${directory.name}/${file}`, what: 'exists already', hint: 'Choose another place' })
}

async function find(source: Place) {
  const { directory } = source
  const named = source.file ?? (await onlyFile(directory))
  const isFolder = ADAPTER_FORMATS.some((name) => formatOf(name).files?.includes(named?.split('/').at(-1) ?? ''))
  const place = { directory, file: isFolder ? undefined : named }
  // PEFT comes last in this order, because any folder may be PEFT's.
  for (const name of [...ADAPTER_FORMATS].reverse()) {
    const format = await formatOf(name).load()
    if (await format.detect(place)) return { place, name, format }
  }
  return withSource(directory, place.file!, async (file) => {
    const recognized = await sniff(file)
    throw new FormatError({
      where: file.name,
      what: recognized === undefined ? 'no adapter of a known format' : `no adapter, but ${recognized.name}`,
      expected: 'a GGUF or an .onnx_adapter file, or the folder of PEFT or mlx-lm',
    })
  })
}

async function onlyFile(directory: Place['directory']): Promise<string | undefined> {
  if (await directory.has('adapter_config.json')) return undefined
  const endings = ADAPTER_FORMATS.flatMap((name) => formatOf(name).ending ?? [])
  const files = (await directory.list()).filter((name) => endings.some((ending) => name.endsWith(ending)))
  if (files.length <= 1) return files[0]
  throw new FileError({ where: directory.name, what: 'several adapters', got: listed(files), hint: 'Name the file' })
}
