// The table of adapter formats. To add a format, write a file with an ExchangeFormat and add an entry here.

import type { ConvertedDtype, ExchangeFormat } from './exchange-format.js'

interface FormatEntry {
  /** The end of the file's name; absent if an adapter is a folder. */
  readonly ending?: string
  readonly dtypes?: readonly ConvertedDtype[]
  load(): Promise<ExchangeFormat>
}

/** All formats, in the order of the help. */
export const FORMATS = {
  peft: { load: async () => (await import('./peft.js')).PEFT },
  gguf: { ending: '.gguf', dtypes: ['q8_0'], load: async () => (await import('./gguf/gguf-adapters.js')).GGUF },
  mlx: { load: async () => (await import('./mlx.js')).MLX },
} as const satisfies Record<string, FormatEntry>

/**
 * - `peft`: a folder with adapter_config.json and adapter_model.safetensors
 * - `gguf`: a file for llama.cpp and programs built on it
 * - `mlx`: a folder for mlx-lm
 */
export type AdapterFormat = keyof typeof FORMATS

export const ADAPTER_FORMATS = Object.freeze(Object.keys(FORMATS)) as readonly AdapterFormat[]

export function formatOf(name: AdapterFormat): FormatEntry {
  return FORMATS[name]
}
