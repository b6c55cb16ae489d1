// An agent that learns to use a tool from rewards alone. When it writes “ in”, an almanac gives it a year, and it
// should end its sentence soon after the year. A new version serves only if the 95 % interval of its gain is above 0.

import { fileURLToPath } from 'node:url'
import { openSession, openTrainer } from 'lowrank'

process.chdir(fileURLToPath(new URL('..', import.meta.url)))
const EPISODES = Number(process.argv[2] ?? 20)
const EVALUATED_EVERY = 10

const prompts = [
  'The law was passed',
  'The treaty was signed',
  'The railroad was built',
  'The bank',
  'The war',
  'Trade',
]
const heldOut = ['The navy', 'The union was formed', 'The canal', 'The office', 'The debt was paid', 'The fort', 'Mail']

const trainer = await openTrainer('models/union-3m', { config: { rank: 8 }, batchSize: 16 })
const tokensOf = (text) => trainer.model.tokenizer.encode(text, { specialTokens: false })
const almanac = (question) => ` ${1800 + (question.length % 100)}`

/** Lets the agent continue each prompt eight times. Gives the trajectories of each prompt, with their rewards. */
async function play(questions, seed) {
  const asked = await trainer.sample(questions, { n: 8, maxNewTokens: 10, stopTokenIds: tokensOf(' in'), seed })
  const calls = asked.flat().filter(({ finish }) => finish === 'eos')
  const answered = calls.map(({ ids, text }) => ({ ids: [...ids, ...tokensOf(almanac(text))] }))
  const ends = calls.length === 0 ? [] : (await trainer.sample(answered, { maxNewTokens: 5, seed })).flat()
  const trajectory = (call) => {
    const end = ends[calls.indexOf(call)]
    if (end === undefined) return { sample: call, text: call.text, reward: 0 }
    // The tokens of the almanac keep the weight 0, so nothing of them is learned.
    const both = (name) => end[name].map((value, i) => call[name][i] ?? value)
    const sample = { ...end, weights: both('weights'), logprobs: both('logprobs') }
    const text = `${call.text} in${almanac(call.text)}${end.text}`
    return { sample, text, reward: end.text.startsWith('.') ? 1 : 0.3 }
  }
  return asked.map((tries) => tries.map(trajectory))
}

const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length
const meansOf = (groups) => groups.map((tries) => mean(tries.map(({ reward }) => reward)))

/** The mean gain over the prompts, and the lower bound of its 95 % interval. */
function gainOf(now, before) {
  const gains = now.map((value, i) => value - before[i])
  const deviation = Math.sqrt(gains.reduce((sum, gain) => sum + (gain - mean(gains)) ** 2, 0) / (gains.length - 1))
  return [mean(gains), mean(gains) - (1.96 * deviation) / Math.sqrt(gains.length)]
}

let live = 'agent-0'
const session = await openSession(trainer.model, { adapters: { [live]: await trainer.save() } })
let served = meansOf(await play(heldOut, 1))
for (let episode = 1; episode <= EPISODES; episode++) {
  const groups = await play(prompts, 1000 * episode)
  const means = meansOf(groups)
  const examples = groups.flatMap((tries, i) => {
    return tries.map(({ sample, reward }) => ({ ...sample, advantages: reward - means[i] }))
  })
  await trainer.forwardBackward(examples, { loss: 'ppo' })
  await trainer.step({ learningRate: 3e-3 })
  const bar = '█'.repeat(Math.round(40 * mean(means))).padEnd(40, '·')
  console.log(`episode ${String(episode).padStart(3)}  ${bar} ${mean(means).toFixed(2)}`)
  if (episode % EVALUATED_EVERY > 0 && episode < EPISODES) continue

  const results = await play(heldOut, 1)
  const [gain, least] = gainOf(meansOf(results), served)
  console.log(
    `on other prompts: gain ${gain.toFixed(2)}, at least ${least.toFixed(2)}: ${heldOut[0]}${results[0][0].text}`,
  )
  if (!(least > 0)) continue
  // The new adapter is added before the old one goes, so that requests always find one.
  const before = live
  live = `agent-${episode}`
  await session.add(live, await trainer.save())
  await session.remove(before)
  served = meansOf(results)
  const { text } = await session.generate('The mint', { adapter: live, maxNewTokens: 12, temperature: 0 })
  console.log(`${live} serves: The mint${text}`)
}
await session.dispose()
await trainer.dispose()
