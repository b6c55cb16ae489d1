// A prompt continued by a base and by an adapter: what tests in Node and in browsers compare.

import type { CausalModel } from '../../src/graph/model-folder.js'
import { AdapterSession } from '../../src/infer/adapter-session.js'
import { generate } from '../../src/infer/generate.js'
import type { LoraAdapter } from '../../src/lora/adapter.js'

export async function continued(model: CausalModel, adapter: LoraAdapter, prompt: string): Promise<string[]> {
  const session = await AdapterSession.open(model, { adapters: { trained: adapter } })
  const texts = []
  for (const name of [undefined, 'trained']) {
    texts.push((await generate(session, prompt, { adapter: name, maxNewTokens: 8 })).text)
  }
  await session.dispose()
  return texts
}
