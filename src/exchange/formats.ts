// The formats of adapters. A new one is a file with an ExchangeFormat, and an entry here.

import type { ConvertedDtype, ExchangeFormat } from './format.js'

interface FormatEntry {
  /** The end of its file's name; absent where an adapter is a folder. */
  readonly ending?: string
  /** Files of the folder, which may be named in place of it. */
  readonly files?: readonly string[]
  readonly dtypes?: readonly ConvertedDtype[]
  load(): Promise<ExchangeFormat>
}

/** In the order in which they are shown. A folder that has no other format is taken for one of PEFT. */
export const FORMATS = {
  peft: {
    files: ['adapter_config.json', 'adapter_model.safetensors', 'adapter_model.bin'],
    load: async () => (await import('./peft.js')).PEFT,
  },
  gguf: { ending: '.gguf', dtypes: ['q8_0'], load: async () => (await import('./gguf/format.js')).GGUF },
  ollama: { dtypes: ['q8_0'], load: async () => (await import('./ollama/ollama.js')).OLLAMA },
  mlx: { files: ['adapter_config.json', 'adapters.safetensors'], load: async () => (await import('./mlx.js')).MLX },
  'onnx-adapter': { ending: '.onnx_adapter', load: async () => (await import('./onnx-adapter.js')).ONNX_ADAPTER },
} as const satisfies Record<string, FormatEntry>

/**
 * - `peft`: a folder with adapter_config.json and adapter_model.safetensors
 * - `gguf`: a file for llama.cpp and what is built on it
 * - `ollama`: a folder with such a file, and a Modelfile with the chat template
 * - `mlx`: a folder for mlx-lm
 * - `onnx-adapter`: a file for ONNX Runtime's own LoRA
 */
export type AdapterFormat = keyof typeof FORMATS

export const ADAPTER_FORMATS = Object.freeze(Object.keys(FORMATS)) as readonly AdapterFormat[]

export function formatOf(name: AdapterFormat): FormatEntry {
  return FORMATS[name]
}
