// Chats to tokens as training does it: records streamed from a file, rendered by a chat template, tokenized, kept
// packed. MB/s of the file, and memory above that of the process with the tokenizer. Its peer is the tokenizer's
// library alone, on the first rendered texts. Usage: npm run build && node bench/data.mjs [--records 1000000] [--model
// models/union-3m] [--template models/data/chat.jinja]
import { createWriteStream } from 'node:fs'
import { mkdtemp, readFile, rm, stat } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setImmediate as turn } from 'node:timers/promises'
import { parseArgs } from 'node:util'
import { Tokenizer } from '@huggingface/tokenizers'
import { readRows } from '../dist/data/read-rows.js'
import { NodeDirectory, openFile } from '../dist/io/node/files.js'
import { openTokenFile } from '../dist/node/token-file.js'
import { loadTask } from '../dist/tasks/tasks.js'
import { loadTokenizer } from '../dist/text/tokenizer.js'
import { encodeRows } from '../dist/train/rows/examples.js'

const { values } = parseArgs({
  options: {
    records: { type: 'string', default: '1000000' },
    model: { type: 'string', default: 'models/union-3m' },
    template: { type: 'string', default: 'models/data/chat.jinja' },
  },
})
const records = Number(values.records)
/** Texts that the peer encodes. */
const PEER_TEXTS = 2000

/** The same numbers every time: xorshift32. */
let state = 42
function below(bound) {
  state ^= state << 13
  state ^= state >>> 17
  state ^= state << 5
  return (state >>> 0) % bound
}

const lines = (await readFile('models/data/whaling.jsonl', 'utf8')).trim().split('\n')
const words = lines.flatMap((line) => JSON.parse(line).text.split(/\s+/))
const text = (least, most) => {
  const count = least + below(most - least)
  const first = below(words.length - count)
  return words.slice(first, first + count).join(' ')
}
/** One turn in two of three chats, else two: about 600 bytes. */
function chat(i) {
  const turnOf = () => [
    { role: 'user', content: text(8, 30) },
    { role: 'assistant', content: text(20, 90) },
  ]
  const system = i % 4 === 0 ? [{ role: 'system', content: 'You are a sailor, and answer as one.' }] : []
  return { messages: [...system, ...turnOf(), ...(i % 3 === 0 ? turnOf() : [])] }
}

const folder = await mkdtemp(join(tmpdir(), 'lowrank-data-'))
const path = join(folder, 'chats.jsonl')
try {
  const out = createWriteStream(path)
  for (let i = 0; i < records; i++) {
    if (!out.write(`${JSON.stringify(chat(i))}\n`)) await new Promise((resolve) => out.once('drain', resolve))
  }
  await new Promise((resolve) => out.end(resolve))

  const directory = new NodeDirectory(values.model)
  const tokenizer = await loadTokenizer(directory)
  const model = { directory, tokenizer, eosTokenIds: [tokenizer.eosTokenId], contextLength: 8192 }
  const { size } = await stat(path)
  const chatTemplate = values.template === '' ? undefined : await readFile(values.template, 'utf8')
  const tokenFile = openTokenFile()
  const options = { task: await loadTask('causal-lm'), model, chatTemplate, file: () => tokenFile, name: path }

  globalThis.gc?.()
  await turn()
  const before = process.memoryUsage.rss()
  let peak = before
  const watch = setInterval(() => {
    peak = Math.max(peak, process.memoryUsage.rss())
  }, 50)
  const source = await openFile(path)
  const startedAt = performance.now()
  const processor = process.cpuUsage()
  const { kept } = await encodeRows(readRows(source), options)
  const seconds = (performance.now() - startedAt) / 1000
  const busySeconds = process.cpuUsage(processor).user / 1e6
  peak = Math.max(peak, process.memoryUsage.rss())
  clearInterval(watch)
  await source.close()

  let tokens = 0
  const texts = []
  let i = 0
  for (const { inputIds } of kept.examples) {
    tokens += inputIds.length
    if (i++ < PEER_TEXTS) texts.push(tokenizer.decode([...inputIds], { specialTokens: true }))
  }
  const [definition, config] = await Promise.all(
    ['tokenizer.json', 'tokenizer_config.json'].map(async (name) =>
      JSON.parse(await readFile(join(values.model, name), 'utf8')),
    ),
  )
  const peer = new Tokenizer(definition, config)
  const peerStart = performance.now()
  for (const one of texts) peer.encode(one, { add_special_tokens: false })
  const peerSeconds = (performance.now() - peerStart) / 1000
  const peerBytes = texts.reduce((sum, one) => sum + Buffer.byteLength(one), 0)

  const rate = (bytes, time) => `${(bytes / 1e6 / time).toFixed(1)} MB/s`
  console.log(`${records} chats, ${(size / 1e6).toFixed(0)} MB, ${kept.examples.length} examples, ${tokens} tokens`)
  console.log(
    `lowrank: ${rate(size, seconds)} (${rate(size, busySeconds)} of processor time), with parsing and rendering`,
  )
  console.log(`@huggingface/tokenizers, encoding alone: ${rate(peerBytes, peerSeconds)}`)
  console.log(`memory: ${((peak - before) / 1e6).toFixed(0)} MB above ${(before / 1e6).toFixed(0)} MB`)
} finally {
  await rm(folder, { recursive: true, force: true })
}
