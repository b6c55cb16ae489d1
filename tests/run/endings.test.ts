// Texts that fit a schema end before their limit of tokens, whatever the model writes.

import { readFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import { expect, it } from 'vitest'
import { requireTokenizer } from '../../src/api/parts/entry.js'
import { jsonIn } from '../../src/core/base/options.js'
import { Random } from '../../src/core/base/random.js'
import { fitsSchema } from '../../src/run/schemas/fits.js'
import { Grammars } from '../../src/run/schemas/grammars.js'
import { checkedSchema } from '../../src/run/schemas/schemas.js'
import { openModel } from './models.js'

const isInstalled = (() => {
  try {
    return createRequire(import.meta.url).resolve('@mlc-ai/web-xgrammar') !== ''
  } catch {
    return false
  }
})()

const casesOf = (name: string) =>
  Object.entries<{ schema: object }>(JSON.parse(readFileSync(`tests/golden/schemas/${name}.json`, 'utf8')).cases)

it.skipIf(!isInstalled)('random texts of 62 schemas end in time, and fit', { timeout: 120_000 }, async () => {
  const model = await openModel('models/union-3m')
  const tokenizer = requireTokenizer(model)
  const grammars = new Grammars(tokenizer.vocabulary(model.vocabularySize!)!)
  const [endId] = model.eosTokenIds
  const random = new Random(3, 'endings')
  const any = { type: 'object' }
  const loose = { type: 'object', properties: { list: { type: 'array', items: any }, text: {} }, required: ['list'] }
  const cases: [string, { schema: object }][] = [
    ...['pydantic', 'zod'].flatMap(casesOf),
    ['any', { schema: any }],
    ['loose', { schema: loose }],
  ]
  let cut = 0
  for (const [title, { schema }] of cases) {
    for (const most of [150, 240]) {
      const grammar = await grammars.start(checkedSchema(schema), [endId])
      const ids: number[] = []
      while (ids.length < most) {
        await grammar.prepare()
        const allowed = [...grammar.masked(new Float32Array(model.vocabularySize!)).entries()].flatMap(([id, logit]) =>
          logit === 0 && id !== endId ? [id] : [],
        )
        const id = allowed.length === 0 ? endId : allowed[Math.floor(random.uniform() * allowed.length)]
        const taken = grammar.accept(id, most - ids.length)
        if (taken === endId) break
        ids.push(taken)
      }
      if (grammar.isCut) cut++
      const text = tokenizer.decode(ids)
      grammar.dispose()
      expect([title, most, text, fitsSchema(jsonIn(text), schema)]).toEqual([title, most, text, true])
    }
  }
  expect(cut).toBeGreaterThan(30)
  await model.close()
})
