// What a chat model learns without a single answer to copy, on prompts that it has not seen.
//
//     node bench/learns.mjs json MODEL [--steps 30] [--seeds 1] [--learning-rate RATE]
//
// GRPO: the model reads a sentence about a person and writes it as JSON. The reward checks a schema and the values.
// Prints the mean reward on held-out sentences before and after, at temperature 1 and with the likeliest tokens.
//
//     node bench/learns.mjs teacher MODEL [--steps 80] [--seeds 1] [--learning-rate RATE] [--beta 0,0.5,1] [--work DIR]
//
// Distillation: a teacher is tuned on short chats in the manner of a captain and merged, and a fresh adapter learns
// from it with the questions alone. Prints which share of the teacher's gain in held-out loss the student has after how
// many steps. --work keeps the teacher in a folder, and takes it from there if it exists.
//
// MODEL is a folder or an id on the Hub, of SmolLM2-135M-Instruct or another model whose chats are ChatML.

import { cpSync, existsSync, mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { parseArgs } from 'node:util'
import { evaluate, loadModel, merge, openTrainer, train } from 'lowrank'
import { captainChats, people, rewardOf, schemaChecks } from './learns-data.mjs'

/** ChatML, as SmolLM2 was tuned with, without its default system message. */
const chatTemplate = `{% for message in messages %}{{ '<|im_start|>' + message['role'] + '
' + message['content'] + '<|im_end|>
' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant
' }}{% endif %}`

const { values: options, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    steps: { type: 'string' },
    seeds: { type: 'string', default: '1' },
    'learning-rate': { type: 'string' },
    beta: { type: 'string', default: '0' },
    work: { type: 'string' },
    threads: { type: 'string', default: '2' },
  },
})
const LENGTH = 40
const [line, source] = positionals
const lessons = { json: learnJson, teacher: learnFromTeacher }
if (!Object.hasOwn(lessons, line) || source === undefined) {
  throw new Error('usage: node bench/learns.mjs json|teacher MODEL')
}
const threads = Number(options.threads)
const learningRate = options['learning-rate'] && Number(options['learning-rate'])
const model = await loadModel(source)
for (const seed of options.seeds.split(',').map(Number)) {
  console.log(JSON.stringify({ line, seed, ...(await lessons[line](seed)) }))
}
await model.close()

async function learnJson(seed) {
  const steps = Number(options.steps ?? 30)
  const { trained, heldOut } = people(4 * steps)
  const before = await measureJson({ config: { rank: 8 } }, heldOut)
  console.error('before', before)
  const startedAt = performance.now()
  const { adapter, report } = await train({
    ...{ task: 'grpo', model, chatTemplate, data: trained, rewards: [rewardOf], threads },
    taskOptions: { numGenerations: 6, maxCompletionLength: LENGTH },
    ...{ batchSize: 4, maxSteps: steps, learningRate, config: { rank: 8, seed } },
    on: {
      step({ step, learningRate: rate, rewards: { reward, distinct, withoutSignal }, elapsedMs }) {
        const seconds = (elapsedMs / 1000).toFixed(1)
        const shares = `distinct ${distinct.toFixed(2)}, without signal ${withoutSignal.toFixed(2)}`
        console.error(
          `step ${step}: reward ${reward.toFixed(3)}, ${shares}, rate ${rate.toExponential(1)}, ${seconds} s`,
        )
      },
    },
  })
  const seconds = Math.round((performance.now() - startedAt) / 1000)
  const after = await measureJson({ adapter }, heldOut)
  const rewards = report.rewards.map((reward) => Number(reward.toFixed(2)))
  return { steps, before, after, rise: after.sampled.reward - before.sampled.reward, rewards, seconds }
}

/** Writes texts for the held-out sentences. The seed of sampling is always the same. */
async function measureJson(given, heldOut) {
  const trainer = await openTrainer(model, { ...given, chatTemplate, threads })
  const prompts = heldOut.map(({ messages }) => messages)
  const measured = {}
  for (const [name, n, sampling] of [
    ['sampled', 2, { temperature: 1, seed: 12345 }],
    ['likeliest', 1, { temperature: 0 }],
  ]) {
    const groups = await trainer.sample(prompts, { n, maxNewTokens: LENGTH, ...sampling })
    const texts = groups.flatMap((group, i) => group.map(({ text }) => ({ text, row: heldOut[i] })))
    const mean = (score) => Number((texts.reduce((sum, text) => sum + score(text), 0) / texts.length).toFixed(3))
    measured[name] = {
      reward: mean(rewardOf),
      fitsSchema: mean((text) => Number(schemaChecks(text).fits)),
      valuesRight: mean((text) => Number(rewardOf(text) === 1)),
      examples: texts.slice(0, 3).map(({ text }) => text),
    }
  }
  await trainer.dispose()
  return measured
}

async function learnFromTeacher(seed) {
  const steps = Number(options.steps ?? 80)
  const { trained, heldOut } = captainChats()
  const questions = trained.map(({ messages: [question] }) => ({ messages: [question] }))
  const shared = { model, chatTemplate, threads }
  const folder = options.work ?? mkdtempSync(path.join(tmpdir(), 'lowrank-learns-'))
  try {
    const [tuned, teacher] = [path.join(folder, 'tuned'), path.join(folder, 'teacher')]
    if (!existsSync(teacher)) {
      await train({
        ...{ ...shared, data: trained, epochs: 1, config: { rank: 8 }, out: tuned, overwrite: true },
        on: { step: ({ step, loss }) => console.error(`teacher, step ${step}: loss ${loss.toFixed(3)}`) },
      })
      await merge({ base: source, adapters: tuned, out: teacher })
    }
    const results = {}
    for (const beta of options.beta.split(',').map(Number)) {
      const [out, kept] = [path.join(folder, `beta ${beta}`), path.join(folder, `kept ${beta}`)]
      const every = Math.ceil(steps / 8)
      const students = {}
      const keep = (step) => {
        students[step] = path.join(kept, String(step))
        cpSync(out, students[step], { recursive: true })
      }
      const startedAt = performance.now()
      await train({
        ...{ ...shared, task: 'distill', data: questions, teacher, out, saveEvery: every, overwrite: true },
        taskOptions: { beta, maxCompletionLength: 32 },
        ...{ batchSize: 8, maxSteps: steps, learningRate, config: { rank: 8, seed } },
        on: {
          step({ step, loss, elapsedMs }) {
            // A step is saved after its event.
            if (step > 1 && (step - 1) % every === 0) keep(step - 1)
            const seconds = (elapsedMs / 1000).toFixed(1)
            console.error(`beta ${beta}, step ${step}: divergence ${loss.toFixed(3)}, ${seconds} s`)
          },
        },
      })
      const seconds = Math.round((performance.now() - startedAt) / 1000)
      keep(steps)
      const adapters = { teacher: tuned, ...students }
      const { models } = await evaluate({ ...shared, data: heldOut, adapters })
      const losses = new Map(models.map(({ name, metrics }) => [name, metrics.loss.value]))
      const gainOf = (name) => losses.get(null) - losses.get(name)
      const shares = Object.keys(students).map((step) => [step, Number((gainOf(step) / gainOf('teacher')).toFixed(3))])
      results[`beta ${beta}`] = { losses: Object.fromEntries(losses), shares: Object.fromEntries(shares), seconds }
      console.error(JSON.stringify(results))
    }
    return { steps, ...results }
  } finally {
    if (options.work === undefined) rmSync(folder, { recursive: true })
  }
}
