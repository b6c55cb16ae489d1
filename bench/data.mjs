// Turns chats into tokens as training does: streams records from a file, renders them with a chat template, tokenizes
// them, and keeps them packed. Prints MB/s of the file, and the memory beyond a process that only has the tokenizer.
// The peer is the tokenizer's library alone on the first rendered texts.
//
//     npm run build && node bench/data.mjs [--records 1000000] [--model models/union-3m] [--template models/data/chat.jinja]
//
// With --train, it runs whole trainings of two steps, each in a separate process, and prints the time, the peak memory,
// and the memory that each record adds.
//
//     node bench/data.mjs --train texts,packed,labels --records 100000,1000000,10000000 [--heap 64] [--json]
//
// --heap limits JavaScript's heap, in MB. --encoder is the model for labels, tags and pairs.
import { execFile } from 'node:child_process'
import { createWriteStream } from 'node:fs'
import { mkdtemp, readFile, rm, stat } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setImmediate as turn } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import { parseArgs, promisify } from 'node:util'

const { values } = parseArgs({
  options: {
    records: { type: 'string', default: '1000000' },
    model: { type: 'string', default: 'models/union-3m' },
    template: { type: 'string', default: 'models/data/chat.jinja' },
    train: { type: 'string' },
    encoder: { type: 'string', default: 'tests/golden/text-classification/encoder' },
    heap: { type: 'string' },
    json: { type: 'boolean', default: false },
    data: { type: 'string' },
  },
})
/** The number of texts that the peer encodes. */
const PEER_TEXTS = 2000

/** Random numbers that are the same in each run: xorshift32. */
let state = 42
function below(bound) {
  state ^= state << 13
  state ^= state >>> 17
  state ^= state << 5
  return (state >>> 0) % bound
}

const lines = (await readFile('models/data/whaling.jsonl', 'utf8')).trim().split('\n')
const words = lines.flatMap((line) => JSON.parse(line).text.split(/\s+/))
const some = (least, most) => {
  const count = least + below(most - least)
  const first = below(words.length - count)
  return words.slice(first, first + count)
}
const text = (least, most) => some(least, most).join(' ')
/** A chat of about 600 bytes. Two of three chats have one turn, the others two. */
function chat(i) {
  const turnOf = () => [
    { role: 'user', content: text(8, 30) },
    { role: 'assistant', content: text(20, 90) },
  ]
  const system = i % 4 === 0 ? [{ role: 'system', content: 'You are a sailor, and answer as one.' }] : []
  return { messages: [...system, ...turnOf(), ...(i % 3 === 0 ? turnOf() : [])] }
}

const label = () => ['calm', 'rough', 'unknown'][below(3)]
/** Records for whole trainings, about 60 bytes each. */
const FORMS = {
  texts: { record: () => ({ text: text(6, 12) }) },
  packed: { record: () => ({ text: text(6, 12) }), packing: true },
  preferences: { record: () => ({ prompt: text(2, 5), chosen: text(2, 5), rejected: text(2, 5) }) },
  judged: { record: () => ({ prompt: text(2, 6), completion: text(2, 6), label: below(2) === 0 }) },
  labels: { record: () => ({ text: text(5, 10), label: label() }), isEncoder: true },
  tags: { record: () => taggedWords(some(4, 7)), isEncoder: true },
  pairs: { record: () => ({ text: text(3, 5), textPair: text(3, 5) }), isEncoder: true },
}

function taggedWords(words) {
  return { words, tags: words.map((word) => (/^[A-Z]/.test(word) ? 'B-NAME' : 'O')) }
}

const folder = await mkdtemp(join(tmpdir(), 'lowrank-data-'))
try {
  if (values.train === undefined) await readChats(Number(values.records))
  else if (values.data === undefined) await trainAll(values.train.split(','), values.records.split(',').map(Number))
  else await trainHere(values.train, values.data)
} finally {
  await rm(folder, { recursive: true, force: true })
}

async function writeRecords(name, count, record) {
  const path = join(folder, name)
  const out = createWriteStream(path)
  for (let from = 0; from < count; from += 1000) {
    const some = Array.from({ length: Math.min(1000, count - from) }, (_, i) => `${JSON.stringify(record(from + i))}\n`)
    if (!out.write(some.join(''))) await new Promise((resolve) => out.once('drain', resolve))
  }
  await new Promise((resolve) => out.end(resolve))
  return path
}

async function trainAll(forms, counts) {
  const script = fileURLToPath(import.meta.url)
  const rows = []
  for (const form of forms) {
    if (FORMS[form] === undefined) throw new Error(`--train ${form}: there are ${Object.keys(FORMS).join(', ')}`)
    let before
    for (const count of counts) {
      const path = await writeRecords(`${form}.jsonl`, count, FORMS[form].record)
      const { size } = await stat(path)
      const flags = values.heap === undefined ? [] : [`--max-old-space-size=${values.heap}`]
      const models = ['--model', values.model, '--encoder', values.encoder]
      const args = [...flags, script, '--train', form, '--data', path, ...models]
      const { stdout } = await promisify(execFile)(process.execPath, args, { maxBuffer: 2 ** 26 })
      const { seconds, peakBytes } = JSON.parse(stdout.trim().split('\n').at(-1))
      const perRecord = before && (peakBytes - before.peakBytes) / (count - before.count)
      before = { count, peakBytes }
      rows.push({ form, records: count, bytes: size, seconds, peakBytes, perRecord })
      await rm(path)
      if (values.json) continue
      const added = perRecord === undefined ? '' : `, ${perRecord.toFixed(1)} bytes for each further record`
      console.log(
        `${form}: ${count} records, ${(size / 1e6).toFixed(0)} MB: ${seconds.toFixed(1)} s, ${(peakBytes / 1e6).toFixed(0)} MB at most${added}`,
      )
    }
  }
  if (values.json) console.log(JSON.stringify(rows))
}

async function trainHere(form, data) {
  const { train } = await import('lowrank')
  const { isEncoder = false, packing = false } = FORMS[form]
  const startedAt = performance.now()
  await train({
    ...{ data, packing, maxSteps: 2, threads: 1, config: { rank: 2 }, on: { warning() {} } },
    model: isEncoder ? values.encoder : values.model,
  })
  const seconds = (performance.now() - startedAt) / 1000
  console.log(JSON.stringify({ seconds, peakBytes: process.resourceUsage().maxRSS * 1024 }))
}

async function readChats(records) {
  const { Tokenizer } = await import('@huggingface/tokenizers')
  const { readRows } = await import('../dist/files/data/read-rows.js')
  const { NodeDirectory, openFile } = await import('../dist/files/io/node/files.js')
  const { openExampleFile } = await import('../dist/api/node/example-file.js')
  const { loadTask } = await import('../dist/train/tasks/tasks.js')
  const { loadTokenizer } = await import('../dist/model/text/tokenizer.js')
  const { encodeRows } = await import('../dist/train/rows/examples.js')
  const path = await writeRecords('chats.jsonl', records, chat)

  const directory = new NodeDirectory(values.model)
  const tokenizer = await loadTokenizer(directory)
  const model = { directory, tokenizer, eosTokenIds: [tokenizer.eosTokenId], contextLength: 8192 }
  const { size } = await stat(path)
  const chatTemplate = values.template === '' ? undefined : await readFile(values.template, 'utf8')
  const exampleFile = openExampleFile()
  const options = { task: await loadTask('causal-lm'), model, chatTemplate, file: () => exampleFile, name: path }

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
  for (const text of texts) peer.encode(text, { add_special_tokens: false })
  const peerSeconds = (performance.now() - peerStart) / 1000
  const peerBytes = texts.reduce((sum, text) => sum + Buffer.byteLength(text), 0)

  const rate = (bytes, time) => `${(bytes / 1e6 / time).toFixed(1)} MB/s`
  console.log(`${records} chats, ${(size / 1e6).toFixed(0)} MB, ${kept.examples.length} examples, ${tokens} tokens`)
  console.log(
    `lowrank: ${rate(size, seconds)} (${rate(size, busySeconds)} of processor time), with parsing and rendering`,
  )
  console.log(`@huggingface/tokenizers, encoding alone: ${rate(peerBytes, peerSeconds)}`)
  console.log(`memory: ${((peak - before) / 1e6).toFixed(0)} MB above ${(before / 1e6).toFixed(0)} MB`)
}
