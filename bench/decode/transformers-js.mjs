// The side of transformers.js in run.mjs.
import { createRequire } from 'node:module'
import { basename, dirname, join } from 'node:path'
import { pathToFileURL } from 'node:url'
import { measured, PROMPT, timeInPlace } from './shared.mjs'

const [, , folder, dtype, tokens, threads, , from] = process.argv
const require = createRequire(join(from, 'package.json'))
const ort = require('onnxruntime-node')
const inside = timeInPlace(ort)
const { AutoModelForCausalLM, AutoTokenizer, env } = await import(
  pathToFileURL(join(from, 'node_modules/@huggingface/transformers/dist/transformers.node.mjs')).href
)
env.localModelPath = dirname(folder)
env.allowRemoteModels = false
const name = basename(folder)
const tokenizer = await AutoTokenizer.from_pretrained(name)
const model = await AutoModelForCausalLM.from_pretrained(name, {
  dtype,
  session_options: { intraOpNumThreads: Number(threads) },
})

process.send('ready')
process.on('message', async () => {
  const before = inside()
  const { result: ids, ...times } = await measured(async () => {
    const inputs = tokenizer(PROMPT)
    const output = await model.generate({
      ...inputs,
      max_new_tokens: Number(tokens),
      do_sample: false,
      repetition_penalty: 1,
    })
    return output.tolist()[0].slice(inputs.input_ids.dims[1])
  })
  const text = tokenizer.decode(ids, { skip_special_tokens: true })
  process.send({ tokens: ids.length, steps: ids.length, ...times, inside: (inside() - before) / 1000, text })
})
