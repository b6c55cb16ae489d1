// A support bot whose thumbs make next week's adapter. Each answer is stored, visitors rate answers, and once a week
// the ratings train an adapter by KTO. It answers from then on if it is no worse on chats that it has not learned from.
//
//     npm install hono && node examples/support-bot.mjs

import { rmSync } from 'node:fs'
import { setTimeout as wait } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import { Hono } from 'hono'
import { createHandler, trainingIn } from 'lowrank/server'

process.chdir(fileURLToPath(new URL('..', import.meta.url)))
rmSync('out/support-bot', { recursive: true, force: true })
const lowrank = await createHandler({
  model: 'models/union-3m',
  chatTemplate: '{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant: ',
  training: trainingIn('out/support-bot'),
  apiKeys: [{ key: 'SECRET', isAdmin: true }],
  hosts: ['localhost'],
})
const headers = { authorization: 'Bearer SECRET', 'content-type': 'application/json' }
const ask = async (path, body) => {
  const request = { headers, ...(body && { method: 'POST', body: JSON.stringify(body) }) }
  const answer = await (await lowrank(new Request(`http://localhost/v1${path}`, request))).json()
  if (answer.error) throw new Error(answer.error.message)
  return answer
}
await ask('/aliases', { name: 'support', model: lowrank.base })

const app = new Hono()
let chats = 0
app.post('/chats', async (c) => {
  const { messages } = await c.req.json()
  // Every third chat is kept for the comparison.
  const metadata = { of: 'support', split: ++chats % 3 === 0 ? 'check' : 'train' }
  const { id, choices } = await ask('/chat/completions', {
    model: 'support',
    messages,
    max_tokens: 24,
    store: true,
    metadata,
  })
  return c.json({ id, answer: choices[0].message.content })
})
app.post('/chats/:id/:thumb{up|down}', async (c) => {
  const { id, thumb } = c.req.param()
  const { metadata } = await ask(`/chat/completions/${id}`)
  await ask(`/chat/completions/${id}`, { metadata: { ...metadata, rating: thumb === 'up' ? 'good' : 'bad' } })
  return c.body(null, 204)
})
/** For a timer, once a week. */
app.post('/train', async (c) => {
  const rated = (split) => ({ from: 'stored', method: 'kto', metadata: { of: 'support', split } })
  const file = async (split) => (await ask('/files', { purpose: 'fine-tune', lowrank: rated(split) })).id
  const [training_file, validation_file] = [await file('train'), await file('check')]
  const settings = { method: 'kto', maxSteps: 12, gate: { alias: 'support' } }
  return c.json(
    await ask('/fine_tuning/jobs', { model: lowrank.base, training_file, validation_file, lowrank: settings }),
  )
})

// In a product, `serve(app)` of @hono/node-server opens a port. Here the visitors, who like short answers, are made up.
const visit = (path, body) =>
  app.request(path, { method: 'POST', ...(body && { body: JSON.stringify(body), headers }) })
for (const what of ['parcel', 'invoice', 'password', 'refund', 'order', 'account', 'address', 'price', 'warranty']) {
  const messages = [{ role: 'user', content: `Where is my ${what}?` }]
  const { id, answer } = await (await visit('/chats', { messages })).json()
  await visit(`/chats/${id}/${answer.length < 80 ? 'up' : 'down'}`)
}
let job = await (await visit('/train')).json()
for (; job.finished_at === null; await wait(500)) job = await ask(`/fine_tuning/jobs/${job.id}`)
const { data } = await ask(`/fine_tuning/jobs/${job.id}/events?order=asc&limit=100`)
for (const { type, message } of data) if (type === 'message') console.log(message)
await lowrank.close()
if (job.status !== 'succeeded') throw new Error(job.error.message)
