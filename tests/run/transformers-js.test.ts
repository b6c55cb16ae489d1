// Texts that transformers.js wrote with the bundled model, and with merges into it, beside those of `generate`.

import { expect, it } from 'vitest'
import { loadAdapter } from '../../src/api/node.js'
import { readJson } from '../../src/core/base/bytes.js'
import { generate } from '../../src/run/generate/generate.js'
import { ModelSession } from '../../src/run/model-session.js'
import { directoryOf, openModel } from './models.js'

interface Golden {
  model: string
  maxNewTokens: number
  cases: { adapter?: string; texts: { prompt: string; text: string }[] }[]
}

it('writes the texts of transformers.js, with adapters those of its merged models', async () => {
  const golden = (await readJson(directoryOf('tests/golden/transformers-js'), 'texts.json')) as Golden
  const model = await openModel(golden.model)
  const session = await ModelSession.open(model)
  for (const { adapter, texts } of golden.cases) {
    if (adapter !== undefined) await session.add(adapter, await loadAdapter(directoryOf(adapter)))
    for (const { prompt, text } of texts) {
      const result = await generate(session, prompt, { adapter, temperature: 0, maxNewTokens: golden.maxNewTokens })
      expect(result.text, `${adapter}: ${prompt}`).toBe(text)
      expect(result.tokens).toBe(golden.maxNewTokens)
    }
  }
  await session.dispose()
  await model.close()
})
