// How long a request keeps a server from all others: the longest pause of the event loop while bodies of several sizes
// are parsed, checked and tokenized. Each is sent alone, to a handler in this process. Long texts do not fit the
// context of a small model, which then refuses them; /tokenize takes them whole.
import { createHandler } from '../dist/serve/node/entry.js'

const SIZES = [16, 64, 256, 1024, 4096, 7900]
const SENTENCE = 'It was the best of times, it was the worst of times, said the captain of ship number '

const text = (bytes) => {
  let made = ''
  for (let i = 0; made.length < bytes; i++) made += `${SENTENCE}${i}. `
  return made.slice(0, bytes)
}
const user = (content) => ({ role: 'user', content })
const many = (bytes) => Array.from({ length: Math.max(1, bytes >> 9) }, (_, i) => user(text(400) + i))

/** A body of about so many bytes for each route. */
const BODIES = {
  'chat, one message': ['/v1/chat/completions', (bytes) => ({ messages: [user(text(bytes))], max_tokens: 1 })],
  'chat, many messages': ['/v1/chat/completions', (bytes) => ({ messages: many(bytes), max_tokens: 1 })],
  completion: ['/v1/completions', (bytes) => ({ prompt: text(bytes), max_tokens: 1 })],
  tokenize: ['/tokenize', (bytes) => ({ prompt: text(bytes) })],
  refused: ['/v1/chat/completions', (bytes) => ({ messages: 1, stop: [text(bytes)] })],
}

/** The longest pause between two turns of the event loop while `work` goes on, in milliseconds. */
async function longestPause(work) {
  let [last, longest, isOver] = [performance.now(), 0, false]
  const look = () => {
    const now = performance.now()
    longest = Math.max(longest, now - last)
    last = now
    if (!isOver) setImmediate(look)
  }
  setImmediate(look)
  await work()
  await new Promise(setImmediate)
  isOver = true
  return longest
}

export async function measureDelay(model, { rounds, threads }) {
  const chatTemplate = '{% for m in messages %}{{ m.content }}\n{% endfor %}'
  const handler = await createHandler({ model, servedModelName: 'm', chatTemplate, session: { threads }, on: {} })
  console.log(`  delay of the event loop, longest of a request in ms (median of ${rounds}; goal 50)`)
  console.log(`    ${'kB'.padEnd(22)}${SIZES.map((size) => String(size).padStart(8)).join('')}`)
  for (const [name, [path, bodyOf]] of Object.entries(BODIES)) {
    const row = []
    for (const size of SIZES) {
      const body = JSON.stringify({ model: 'm', ...bodyOf(size << 10) })
      const pauses = []
      for (let round = 0; round <= rounds; round++) {
        const init = { method: 'POST', headers: { 'content-type': 'application/json' }, body }
        const request = new Request(`http://localhost${path}`, init)
        const pause = await longestPause(async () => (await handler(request)).text())
        if (round > 0) pauses.push(pause)
      }
      row.push(pauses.sort((a, b) => a - b)[pauses.length >> 1])
    }
    console.log(`    ${name.padEnd(22)}${row.map((ms) => ms.toFixed(0).padStart(8)).join('')}`)
  }
  await handler.close()
}
