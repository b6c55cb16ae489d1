// One side of pipelines.mjs: a pipeline of transformers.js, either with the plain model or with an adapter through
// lowrank's session.
import { createRequire } from 'node:module'
import { basename, dirname, join } from 'node:path'
import { pipelineWithAdapters } from '../../dist/app/transformers/node/entry.js'
import { measured, PROMPT, timeInPlace } from './shared.mjs'

const [, , folder, dtype, , threads, , from, adapter] = process.argv
const require = createRequire(join(from, 'package.json'))
const inside = timeInPlace(require('onnxruntime-node'))
const transformers = require('@huggingface/transformers')
transformers.env.localModelPath = dirname(folder)
transformers.env.allowRemoteModels = false

const open = () =>
  adapter === undefined
    ? transformers.pipeline('text-generation', basename(folder), {
        dtype,
        session_options: { intraOpNumThreads: Number(threads) },
      })
    : pipelineWithAdapters('text-generation', folder, {
        adapters: { adapter },
        dtype,
        threads: Number(threads),
        transformers,
      })
const pipe = await open()
const options = { do_sample: false, repetition_penalty: 1, return_full_text: false }
if (adapter !== undefined) options.adapter = 'adapter'

process.send('ready')
process.on('message', async (tokens) => {
  const before = inside()
  const lengths = { min_new_tokens: tokens, max_new_tokens: tokens }
  const { result: _, ...times } = await measured(() => pipe(PROMPT, { ...options, ...lengths }))
  process.send({ tokens, ...times, inside: (inside() - before) / 1000 })
})
