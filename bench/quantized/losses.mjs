// Evaluation losses of one adapter on different graphs of a model: float32, quantized with the adapter as a branch, and
// quantized with the adapter merged.
//
//     node bench/quantized/losses.mjs RECORDS.jsonl NAME=MODEL[@DTYPE][+ADAPTER] …
//
// RECORDS: one {"text": …} per line. MODEL: a folder with onnx/model*.onnx. Prints nats per token and the file's size
// for each entry, on the same records, cut after 128 tokens.

import { readdirSync, readFileSync, statSync } from 'node:fs'
import { join } from 'node:path'
import { loadAdapter, loadModel, openSession } from 'lowrank'

const MAX_TOKENS = 128
const SUFFIXES = { fp32: '', fp16: '_fp16', q8: '_quantized', q4: '_q4' }

const [records, ...entries] = process.argv.slice(2)
if (entries.length === 0)
  throw new Error('usage: node bench/quantized/losses.mjs RECORDS.jsonl NAME=MODEL[@DTYPE][+ADAPTER] …')
const texts = readFileSync(records, 'utf8')
  .split('\n')
  .filter(Boolean)
  .map((line) => JSON.parse(line).text)

for (const entry of entries) {
  const [, name, folder, dtype = 'fp32', adapter] = /^([^=]+)=([^@+]+)(?:@([^+]+))?(?:\+(.+))?$/.exec(entry)
  const model = await loadModel(folder, { dtype })
  const session = await openSession(model, { adapters: adapter ? { adapter: await loadAdapter(adapter) } : {} })
  let [loss, count] = [0, 0]
  for (const text of texts) {
    const ids = [...model.tokenizer.encode(text)].slice(0, MAX_TOKENS)
    const feeds = { input_ids: { type: 'int64', data: BigInt64Array.from(ids, BigInt), dims: [1, ids.length] } }
    const options = { outputNames: ['logits'], ...(adapter && { adapter: 'adapter' }) }
    const { logits } = await session.run(feeds, options)
    const vocabulary = logits.dims[2]
    for (let i = 0; i + 1 < ids.length; i++) {
      loss -= logProbability(logits.data.subarray(i * vocabulary, (i + 1) * vocabulary), ids[i + 1])
      count++
    }
  }
  await session.dispose()
  await model.close()
  const file = `model${SUFFIXES[dtype] ?? `_${dtype}`}.onnx`
  const parts = readdirSync(join(folder, 'onnx')).filter((part) => part === file || part.startsWith(`${file}_data`))
  const bytes = parts.reduce((sum, part) => sum + statSync(join(folder, 'onnx', part)).size, 0)
  console.log(
    `${name.padEnd(28)} ${(loss / count).toFixed(4)} nats  ${(bytes / 1e6).toFixed(0).padStart(5)} MB  ${count} tokens`,
  )
}

/** ln softmax(row)[target] */
function logProbability(row, target) {
  let max = Number.NEGATIVE_INFINITY
  for (const value of row) max = Math.max(max, value)
  let sum = 0
  for (const value of row) sum += Math.exp(value - max)
  return row[target] - max - Math.log(sum)
}
