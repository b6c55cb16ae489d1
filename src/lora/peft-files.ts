// The files of an adapter folder: which of them PEFT would read, and opening it.

import type { Directory } from '../base/bytes.js'
import { parseSafetensorsHeader, type SafetensorsFile } from '../formats/safetensors.js'
import { parseTorchFile } from '../formats/torch/torch-file.js'

export const CONFIG_FILE = 'adapter_config.json'
export const WEIGHTS_FILE = 'adapter_model.safetensors'
/** What PEFT wrote before 0.6, and since then with safe_serialization=False. */
export const TORCH_FILE = 'adapter_model.bin'

/**
 * Opens an adapter's tensors, whose source is the caller's to close: the safetensors file if there is one, as PEFT does, else the one
 * by torch.save, in which nothing is executed.
 *
 * @throws FileError when there is neither; FormatError or UnsupportedError when the file cannot be read
 */
export async function openWeights(directory: Directory): Promise<SafetensorsFile> {
  const isTorch = !(await directory.has(WEIGHTS_FILE)) && (await directory.has(TORCH_FILE))
  const source = await directory.open(isTorch ? TORCH_FILE : WEIGHTS_FILE)
  try {
    return await (isTorch ? parseTorchFile(source) : parseSafetensorsHeader(source))
  } catch (error) {
    await source.close()
    throw error
  }
}
