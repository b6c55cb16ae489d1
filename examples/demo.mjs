// The tour, `npm start`: trains two adapters on one small model, swaps between them, merges one, and checks the result.
// Everything it makes is under out/demo; run it as often as you like.

import { fileURLToPath } from 'node:url'
import { loadModel, merge, openSession, train } from 'lowrank'

process.chdir(fileURLToPath(new URL('..', import.meta.url)))

const MODEL = 'models/union-3m'
const OUT = 'out/demo'
const PROMPT = 'And the people'
const startedAt = performance.now()

console.log(`
lowrank demo: two LoRA adapters for one language model

${MODEL} is a tiny model (3 million parameters) that was trained only on speeches of US presidents to Congress.
An adapter is a small set of extra weights that changes how the model writes. The model's own file does not change.
Each text below is the first one that was drawn, with seed 7.
`)

heading('1. What the model writes')
const model = await loadModel(MODEL)
const session = await openSession(model)
await sample('base')

heading('2. Train an adapter on the King James Bible')
const scripture = await trainAdapter('scripture', 150)
await session.add('scripture', scripture)
console.log('\nThe same prompt, with the adapter:')
await sample('scripture')

heading('3. Train another one on Moby-Dick')
const whaling = await trainAdapter('whaling', 60)
await session.add('whaling', whaling)

heading('4. Swap: one model in memory, an adapter for each request')
for (const name of ['whaling', 'base', 'scripture']) await sample(name)

heading('5. Merge: a model with the adapter inside, for any ONNX Runtime')
const merged = await merge({
  base: `${MODEL}/onnx/model.onnx`,
  adapters: `${OUT}/scripture`,
  out: `${OUT}/merged`,
  overwrite: true,
})
const mergedModel = await loadModel(`${OUT}/merged`)
const mergedSession = await openSession(mergedModel)
const feeds = inputs(PROMPT)
const { logits: expected } = await session.run(feeds, { adapter: 'scripture' })
const { logits: actual } = await mergedSession.run(feeds)
const difference = expected.data.reduce((worst, value, i) => Math.max(worst, Math.abs(value - actual.data[i])), 0)
const isSame = difference < 1e-4
console.log(`${merged.changed} of ${merged.tensors} weights changed, in ${merged.seconds.toFixed(1)} s.`)
console.log(`Logits of the merged model and of base + adapter: largest difference ${difference.toExponential(1)}`)
console.log(isSame ? 'The same, up to rounding.' : 'NOT the same: this is a bug, please report it.')

await mergedSession.dispose()
await mergedModel.close()
await session.dispose()
await model.close()

heading(`Done in ${((performance.now() - startedAt) / 1000).toFixed(0)} s. New files:`)
console.log(`  ${OUT}/scripture   adapter: adapter_config.json, adapter_model.safetensors (PEFT reads them), metrics.jsonl
  ${OUT}/whaling     adapter
  ${OUT}/merged      model with the first adapter inside: config, tokenizer, onnx/model.onnx

Try next:
  npx lowrank generate --model ${MODEL} --adapter ${OUT}/whaling --prompt "The sea" --temperature 0.6 --min-p 0.1 --repetition-penalty 1.15
  npx lowrank generate --model ${OUT}/merged --prompt "In the beginning" --temperature 0.6 --min-p 0.1 --repetition-penalty 1.15
  npx lowrank inspect ${OUT}/scripture
  npx lowrank train --model ${MODEL} --data models/data/whaling.jsonl --eval-data models/data/whaling.eval.jsonl --out out/mine --learning-rate 5e-3
Your own data: chats, texts or questions in a file (docs/data.md). Your own model: an id on the Hugging Face Hub, or a folder (docs/models.md).
`)
process.exitCode = isSame ? 0 : 1

async function trainAdapter(name, maxSteps) {
  let before
  const { adapter, report } = await train({
    model,
    data: `models/data/${name}.jsonl`,
    evalData: `models/data/${name}.eval.jsonl`,
    out: `${OUT}/${name}`,
    overwrite: true,
    config: { rank: 8, alpha: 16, targetModules: 'all-linear' },
    maxSteps,
    batchSize: 8,
    learningRate: 5e-3,
    schedule: 'linear',
    on: {
      evaluation({ loss, metrics: { perplexity } }) {
        const change = before === undefined ? '' : `, before ${before.toFixed(2)}`
        console.log(`Loss on the evaluation texts: ${loss.toFixed(2)}${change} (perplexity ${perplexity.toFixed(0)})`)
        before ??= loss
      },
      step: showStep,
    },
  })
  const figure = (value) => value.toLocaleString('en-US')
  const share = ((report.trainableParams / report.totalParams) * 100).toFixed(1)
  console.log(
    `Trained ${figure(report.trainableParams)} parameters, ${share} % of the parameters of the adapted layers,`,
  )
  console.log(`on ${figure(report.tokens)} tokens in ${report.seconds.toFixed(0)} s; saved in ${OUT}/${name}`)
  return adapter
}

function showStep({ step, totalSteps, loss, tokensPerSecond, secondsLeft }) {
  const line = `step ${step}/${totalSteps}  loss ${loss.toFixed(2)}  ${tokensPerSecond.toFixed(0)} tokens/s  ${secondsLeft.toFixed(0)} s left`
  const isLast = step === totalSteps
  if (process.stdout.isTTY) process.stdout.write(`\r\x1b[2K${line}${isLast ? '\n' : ''}`)
  else if (step === 1 || step % 25 === 0 || isLast) console.log(line)
}

async function sample(name) {
  const adapter = name === 'base' ? undefined : name
  const drawn = { temperature: 0.6, minP: 0.1, repetitionPenalty: 1.15, seed: 7 }
  const { text } = await session.generate(PROMPT, { adapter, maxNewTokens: 40, ...drawn })
  console.log(`${`${name}:`.padEnd(11)}${PROMPT}${text.replaceAll('\n', ' ')} …`)
}

function inputs(text) {
  const ids = model.tokenizer.encode(text)
  return { input_ids: { type: 'int64', data: BigInt64Array.from(ids, BigInt), dims: [1, ids.length] } }
}

function heading(text) {
  console.log(`\n${text}\n${'-'.repeat(text.length)}`)
}
