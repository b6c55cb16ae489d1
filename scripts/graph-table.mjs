// Compares lowrank with PEFT on real models in the forms that people run, and writes the table of docs/graphs.md.
// scripts/golden/graph_table.py makes the models in the folder WORK. Run `npm run build` first.
//
//     node scripts/graph-table.mjs WORK [--only NAME …]
//
// Each cell runs in a separate process. A cell is a number, or the text of an error.

import { spawnSync } from 'node:child_process'
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { fileURLToPath } from 'node:url'

const script = fileURLToPath(import.meta.url)
const repository = path.join(path.dirname(script), '..')
const PAGE = path.join(repository, 'docs', 'graphs.md')

const ROWS = {
  'smollm2-fp32': 'SmolLM2-135M, fp32',
  'smollm2-fp16': 'SmolLM2-135M, fp16',
  'smollm2-q4-32': 'SmolLM2-135M, q4: MatMulNBits, blocks of 32',
  'smollm2-q4-128-asymmetric': 'SmolLM2-135M, MatMulNBits, blocks of 128 with zero points',
  'smollm2-8bit-32': 'SmolLM2-135M, 8-bit MatMulNBits, blocks of 32',
  'smollm2-int8': 'SmolLM2-135M, int8: MatMulInteger',
  'smollm2-bnb4': 'SmolLM2-135M, bnb4: MatMulBnb4, NF4',
  'smollm2-qdq-32': 'SmolLM2-135M, QDQ: DequantizeLinear, int4, blocks of 32',
  'smollm2-genai-fp32': 'SmolLM2-135M, onnxruntime-genai, fp32',
  'smollm2-genai-int4': 'SmolLM2-135M, onnxruntime-genai, int4',
  'gemma3-fp32': 'Gemma 3 270M, fp32',
  'gemma3-q4-32': 'Gemma 3 270M, q4: MatMulNBits, blocks of 32',
  'minilm-fp32': 'MiniLM-L6, fp32',
  'minilm-fp16': 'MiniLM-L6, fp16',
  'minilm-q4-32': 'MiniLM-L6, q4: MatMulNBits, blocks of 32',
  'minilm-int8': 'MiniLM-L6, int8: MatMulInteger',
  'minilm-fused-mha': 'MiniLM-L6, fused: MultiHeadAttention',
  'minilm-fused-attention': 'MiniLM-L6, fused: Attention',
}

const CELLS = ['session', 'merge', 'train']
const TRAIN_STEPS = 6

/** √(Σ (a − b)² / Σ b²) */
function distance(values, truth) {
  if (values.length !== truth.length) throw new Error(`${values.length} values, not ${truth.length}`)
  let [difference, whole] = [0, 0]
  for (let i = 0; i < values.length; i++) {
    difference += (values[i] - truth[i]) ** 2
    whole += truth[i] ** 2
  }
  return Math.sqrt(difference / whole)
}

/** Reads an f32 tensor of a safetensors file. */
function tensorOf(file, name) {
  const bytes = readFileSync(file)
  const length = Number(bytes.readBigUInt64LE(0))
  const [start, end] = JSON.parse(bytes.subarray(8, 8 + length).toString())[name].data_offsets
  return new Float32Array(
    bytes.buffer.slice(bytes.byteOffset + 8 + length + start, bytes.byteOffset + 8 + length + end),
  )
}

/** Returns the outputs without the adapter and, if one is given, with it. */
async function outputsOf(lowrank, folder, adapter, ids) {
  const session = await lowrank.openSession(folder, {
    adapters: adapter === undefined ? {} : { own: adapter },
    threads: 2,
  })
  try {
    const int64 = (values) => ({ type: 'int64', data: BigInt64Array.from(values, BigInt), dims: [1, values.length] })
    const feeds = { input_ids: int64(ids), attention_mask: int64(ids.map(() => 1)) }
    const results = []
    for (const name of adapter === undefined ? [null] : [null, 'own']) {
      const outputs = await session.run(feeds, { adapter: name })
      const { data } = outputs.logits ?? outputs.last_hidden_state ?? Object.values(outputs)[0]
      results.push(Float32Array.from(data))
    }
    return results
  } finally {
    await session.dispose()
  }
}

const minus = (a, b) => a.map((value, i) => value - b[i])

/** Σ ab / √(Σ a² Σ b²) */
function cosine(a, b) {
  let [both, first, second] = [0, 0, 0]
  for (let i = 0; i < a.length; i++) {
    both += a[i] * b[i]
    first += a[i] * a[i]
    second += b[i] * b[i]
  }
  return both / Math.sqrt(first * second)
}

const TEXTS = [
  'We the People of the United States, in Order to form a more perfect Union, establish Justice, insure domestic Tranquility.',
  'Call me Ishmael. Some years ago, never mind how long precisely, having little or no money in my purse, I thought I would sail.',
]

/** Trains, and returns the mean loss of the first two and of the last two steps. */
async function trained(lowrank, folder, base) {
  const isCausal = base !== 'minilm'
  const data = isCausal
    ? TEXTS.map((text) => ({ text }))
    : TEXTS.flatMap((text, i) => [{ text, label: i === 0 ? 'law' : 'sea' }])
  const { report } = await lowrank.train({
    model: folder,
    data,
    task: isCausal ? 'causal-lm' : 'text-classification',
    config: { rank: 8, alpha: 16, targetModules: isCausal ? ['q_proj', 'v_proj'] : ['query', 'value'] },
    maxLength: 32,
    batchSize: 2,
    maxSteps: TRAIN_STEPS,
    learningRate: 3e-3,
    threads: 2,
  })
  return [report.trainLoss[0], report.trainLoss.at(-1)]
}

/** Measures a cell: { value } or { refused }. */
async function measure(work, name, cell) {
  const lowrank = await import(path.join(repository, 'dist', 'api', 'node.js'))
  const base = name.split('-')[0]
  const folder = path.join(work, name)
  const adapter = path.join(work, `${base}-adapter`)
  const { inputIds } = JSON.parse(readFileSync(path.join(adapter, 'numbers.json'), 'utf8'))
  const truth = (key) => tensorOf(path.join(adapter, 'numbers.safetensors'), key)
  try {
    const [plain, adapted] = [truth('base'), truth('adapted')]
    if (cell === 'session') {
      const [without, withAdapter] = await outputsOf(lowrank, folder, adapter, inputIds)
      const effect = cosine(minus(withAdapter, without), minus(adapted, plain))
      return { base: distance(without, plain), value: distance(withAdapter, adapted), effect }
    }
    if (cell === 'train') return { value: await trained(lowrank, folder, base) }
    const out = path.join(mkdtempSync(path.join(tmpdir(), 'lowrank-table-')), 'merged')
    try {
      await lowrank.merge({ base: folder, adapters: adapter, out })
      const [merged] = await outputsOf(lowrank, out, undefined, inputIds)
      return { value: distance(merged, adapted) }
    } finally {
      rmSync(path.dirname(out), { recursive: true, force: true })
    }
  } catch (error) {
    if (error instanceof lowrank.LowrankError) return { refused: error.message }
    throw error
  }
}

const figure = (value) =>
  value < 1e-4 ? value.toExponential(0).replace('e-', 'e−') : `${(100 * value).toPrecision(2)} %`

/** Returns the text of a cell. Refusals become notes below the table, each only once. */
function cellText(result, notes) {
  if (result === undefined) return 'not measured'
  if (result.refused !== undefined) {
    const at = notes.indexOf(result.refused)
    return `refused [${(at === -1 ? notes.push(result.refused) - 1 : at) + 1}]`
  }
  if (Array.isArray(result.value)) return result.value.map((loss) => loss.toFixed(3)).join(' → ')
  return figure(result.value)
}

/** Replaces what stands between the page's two marks. Rows without results stay as they are. */
function writePage(results) {
  const notes = []
  const page = readFileSync(PAGE, 'utf8')
  const lines = Object.entries(ROWS).map(([name, title]) => {
    const kept = page.split('\n').find((line) => line.startsWith(`| ${title} |`))
    if (results[name] === undefined && kept !== undefined) return kept
    const [session, ...others] = CELLS.map((cell) => cellText(results[name]?.[cell], notes))
    const { base, effect } = results[name]?.session ?? {}
    const shown = [base === undefined ? '' : figure(base), session, effect === undefined ? '' : effect.toFixed(3)]
    return `| ${[title, ...shown, ...others].join(' | ')} |`
  })
  const table = [
    '| graph | base | session | effect | merge | train |',
    '| --- | --- | --- | --- | --- | --- |',
    ...lines,
    ...(notes.length === 0 ? [] : ['', ...notes.map((note, i) => `${i + 1}. ${note}`)]),
  ].join('\n')
  const [begin, end] = ['<!-- table: begin -->', '<!-- table: end -->']
  const [before, after] = [page.slice(0, page.indexOf(begin) + begin.length), page.slice(page.indexOf(end))]
  writeFileSync(PAGE, `${before}\n\n${table}\n\n${after}`)
}

const [work, ...rest] = process.argv.slice(2)
if (rest[0] === '--cell') {
  process.stdout.write(JSON.stringify(await measure(work, rest[1], rest[2])))
} else {
  const only = rest[0] === '--only' ? rest.slice(1) : Object.keys(ROWS)
  const kept = path.join(work, 'results.json')
  const results = existsSync(kept) ? JSON.parse(readFileSync(kept, 'utf8')) : {}
  for (const name of only.filter((model) => existsSync(path.join(work, model, 'tokenizer.json')))) {
    results[name] = {}
    for (const cell of CELLS) {
      const { stdout, stderr, status } = spawnSync(process.execPath, [script, work, '--cell', name, cell], {
        encoding: 'utf8',
        maxBuffer: 1 << 26,
      })
      if (status !== 0) throw new Error(`${name}, ${cell}: ${stderr}`)
      // Errors name the folder of the models, which differs from machine to machine.
      results[name][cell] = JSON.parse(stdout.replaceAll(`${path.resolve(work)}/`, ''))
      console.error(name, cell, JSON.stringify(results[name][cell]).slice(0, 150))
    }
    writeFileSync(kept, `${JSON.stringify(results, null, 1)}\n`)
  }
  writePage(results)
}
