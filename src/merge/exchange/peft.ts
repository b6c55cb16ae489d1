// PEFT's folders as one of the adapter formats.

import { Steps } from '../../core/base/progress.js'
import { saveAdapter } from '../../lora/peft/adapter-folder.js'
import type { ExchangeFormat } from './exchange-format.js'

export const PEFT: ExchangeFormat = {
  async write(adapter, { directory }, { dtype, signal, on }) {
    const whole = await adapter.load()
    if (signal?.aborted) throw signal.reason
    await saveAdapter(whole, directory, dtype === 'keep' || dtype === 'q8_0' ? {} : { dtype })
    await new Steps(1, { signal, on }).next('adapter_model.safetensors')
    return { layers: whole.size }
  },
}
