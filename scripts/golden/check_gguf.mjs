// llama.cpp with adapters that lowrank wrote, and with models into which it merged them, against PEFT's logits.
//
//     check_gguf.mjs NODE_LLAMA_CPP BASES
//
// NODE_LLAMA_CPP is a folder in which `npm install node-llama-cpp@3.22.1` ran; BASES is what `gguf_adapters.py --bases`
// wrote. Run `npm run build` first. For each model: converts the adapter with the folder's config.json and with the
// GGUF file as the base, in each type, loads it in llama.cpp, and compares log-probabilities. Exits with 1 if one is
// too far off.

import { mkdtempSync, readdirSync, readFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join, resolve } from 'node:path'
import { fileURLToPath, pathToFileURL } from 'node:url'
import { convertAdapter, merge } from '../../dist/api/node.js'
import unpackAll from './packed.mjs'

const [packages, bases] = process.argv.slice(2).map((path) => resolve(path))
const module = join(packages, 'node_modules/node-llama-cpp/dist/index.js')
const { getLlama, LlamaLogLevel } = await import(pathToFileURL(module).href)
const golden = fileURLToPath(new URL('../../tests/golden/gguf', import.meta.url))
const scratch = mkdtempSync(join(tmpdir(), 'lowrank-gguf-'))
/**
 * The largest differences of log-probabilities allowed, by type: absolute for fp32, for other types as a share of the
 * change by the adapter. llama.cpp rounds activations to 8 bits before a q8_0 product.
 */
const TOLERANCE = { fp32: 1e-3, fp16: 1e-2, bf16: 5e-2, q8_0: 0.3 }

const llama = await getLlama({ gpu: false, build: 'never', logLevel: LlamaLogLevel.error })

function logSoftmax(logits) {
  const most = Math.max(...logits)
  const total = Math.log(logits.reduce((sum, value) => sum + Math.exp(value - most), 0)) + most
  return logits.map((value) => value - total)
}

async function logProbabilities(model, tokens, adapter) {
  const context = await model.createContext({
    contextSize: 64,
    threads: 1,
    flashAttention: false,
    experimentalKvCacheKeyType: 'F32',
    experimentalKvCacheValueType: 'F32',
    ...(adapter && { lora: { adapters: [{ filePath: adapter, scale: 1 }] } }),
  })
  const sequence = context.getSequence()
  const input = [...tokens.slice(0, -1), [tokens.at(-1), { generateNext: { probabilities: true } }]]
  const result = (await sequence.controlledEvaluate(input)).at(-1)
  const all = [...result.next.probabilities].sort(([a], [b]) => a - b).map(([, value]) => Math.log(value))
  await context.dispose()
  return all
}

const largest = (a, b) => Math.max(...a.map((value, i) => Math.abs(value - b[i])))

let failed = 0
unpackAll()
const names = readdirSync(golden, { withFileTypes: true }).filter((entry) => entry.isDirectory())
for (const { name } of names) {
  const { tokens, logits, base } = JSON.parse(readFileSync(join(golden, name, 'logits.json'), 'utf8'))
  const model = await llama.loadModel({ modelPath: join(bases, `${name}.gguf`), useMmap: false })
  const offBase = largest(await logProbabilities(model, tokens), logSoftmax(base))
  const change = largest(logSoftmax(logits), logSoftmax(base))
  const line = [name.padEnd(16), `base ${offBase.toExponential(1)}`, `change ${change.toFixed(2)}`]
  for (const outDtype of Object.keys(TOLERANCE)) {
    const out = join(scratch, `${name}-${outDtype}.gguf`)
    await convertAdapter(join(golden, name), { to: 'gguf', base: join(golden, name), out, outDtype })
    const off = largest(await logProbabilities(model, tokens, out), logSoftmax(logits))
    const isClose = off < TOLERANCE[outDtype] * (outDtype === 'fp32' ? 1 : change)
    if (!isClose) failed++
    line.push(`${outDtype} ${off.toExponential(1)}${isClose ? '' : ' WRONG'}`)
  }
  await model.dispose()
  for (const outDtype of Object.keys(TOLERANCE)) {
    const out = join(scratch, `${name}-${outDtype}-merged.gguf`)
    await merge({ base: join(bases, `${name}.gguf`), adapters: join(golden, name), out, outDtype, on: {} })
    const merged = await llama.loadModel({ modelPath: out, useMmap: false })
    const off = largest(await logProbabilities(merged, tokens), logSoftmax(logits))
    await merged.dispose()
    const isClose = off < TOLERANCE[outDtype] * (outDtype === 'fp32' ? 1 : change)
    if (!isClose) failed++
    line.push(`merged ${outDtype} ${off.toExponential(1)}${isClose ? '' : ' WRONG'}`)
  }
  console.log(line.join('  '))
}
await llama.dispose()
console.log(failed === 0 ? 'all right' : `${failed} wrong`)
process.exit(failed === 0 ? 0 : 1)
