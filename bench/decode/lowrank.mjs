// lowrank's side of run.mjs.
import * as ort from 'onnxruntime-node'
import { loadModel, openSession } from '../../dist/api/node.js'
import { measured, PROMPT, timed } from './shared.mjs'

const [, , folder, dtype, tokens, threads, texts, , level] = process.argv
const { module, inside } = timed(ort)
const model = await loadModel(folder, { dtype, runtime: { module } })
const session = await openSession(model, {
  threads: Number(threads),
  ...(level !== '' && { accuracyLevel: Number(level) }),
})
const prompts = Array.from({ length: Number(texts) }, () => PROMPT)
const options = { maxNewTokens: Number(tokens), temperature: 0, repetitionPenalty: 1 }

process.send('ready')
process.on('message', async () => {
  const before = inside()
  const { result: results, ...times } = await measured(() => session.generate(prompts, options))
  const count = results.reduce((sum, result) => sum + result.tokens, 0)
  process.send({
    tokens: count,
    steps: results[0].tokens,
    ...times,
    inside: (inside() - before) / 1000,
    text: results[0].text,
  })
})
