// Converts an adapter from one format into another.

import { closing, type Place, requireEmpty, writeTogether } from '../../core/base/bytes.js'
import { ConfigError, FileError, FormatError } from '../../core/base/errors.js'
import { LoraAdapter } from '../../lora/adapter.js'
import { openAdapter } from '../../lora/peft/open.js'
import type { WriteSettings } from './exchange-format.js'
import { ADAPTER_FORMATS, type AdapterFormat, formatOf } from './formats.js'
import { openMlx } from './mlx.js'

/** Result of `convertAdapter`. */
export interface ConvertReport {
  /** The format of the source; `memory` for an adapter in memory. */
  from: 'peft' | 'mlx' | 'memory'
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
  const { from, adapter: opened } = await open(source)
  return closing(opened, async (adapter) => {
    if (adapter.parts().length === 0) throw new FormatError({ where: 'adapter', what: 'has no layers' })
    const { directory, file } = target
    const format = await load()
    const { layers, notes = [] } = await (file === undefined
      ? writeTogether(directory, (folder) => format.write(adapter, { directory: folder, file }, settings), true)
      : format.write(adapter, target, settings))
    const name = file === undefined ? directory.name : `${directory.name}/${file}`
    return { from, to, out: name, layers, notes }
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

/** The files of a folder of PEFT or mlx-lm, which may be given instead of the folder. */
const FOLDER_FILES = /(^|\/)(adapter_config\.json|adapter_model\.(safetensors|bin)|adapters\.safetensors)$/

async function open(source: LoraAdapter | Place) {
  if (source instanceof LoraAdapter) return { from: 'memory' as const, adapter: await openAdapter(source) }
  const { directory, file } = source
  if (file !== undefined && !FOLDER_FILES.test(file)) {
    throw new FormatError({
      where: `${directory.name}/${file}`,
      what: 'cannot be read as an adapter',
      expected: 'the folder of an adapter of PEFT or mlx-lm',
    })
  }
  const mlx = await openMlx(directory)
  if (mlx !== undefined) return { from: 'mlx' as const, adapter: mlx }
  return { from: 'peft' as const, adapter: await openAdapter(directory) }
}
