// Compares the page of web/ in Chromium with Node on the same machine: a training step, the first paint, and the time
// until the bundled model is ready. Contestants take turns; the page opens in a new browser each round, so that nothing
// is cached. It also measures the plain products of the model's weights in the ONNX Runtime of each side with the same
// threads. WebAssembly multiplies 4 numbers at once and has no fused multiply-add, so the ratio of these products is
// the best that a step can reach.
//
// With --memory FOLDER it only measures memory: the peak of the tab's processes while the page opens the folder's
// model, trains on texts with the page's settings, and writes. It adds up the PSS of each process in /proc (Linux), so
// shared memory counts once. WebAssembly's memory is part of it.
//
//   npm run build && npm install --no-save -D onnxruntime-web@1.30.0
//   node bench/page.mjs [--rounds 5] [--steps 12] [--memory FOLDER]
import { mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs'
import { cpus, tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'
import * as ortNode from 'onnxruntime-node'
import { build, preview, runnerImport } from 'vite'
import { loadModel, train } from '../dist/api/node.js'
import * as onnx from '../dist/onnx/format/gen/onnx_pb.js'
import { create, toBinary } from '../dist/onnx/format/protobuf.js'

const { values } = parseArgs({
  options: {
    rounds: { type: 'string', default: '5' },
    steps: { type: 'string', default: '12' },
    memory: { type: 'string' },
  },
})
const root = fileURLToPath(new URL('../', import.meta.url))
const { openPage } = (await runnerImport(join(root, 'tests/page.ts'))).module
const steps = Number(values.steps)
const DATA = join(root, 'models/data/whaling.jsonl')
/** The settings in the fields of the page. */
const SETTINGS = { maxSteps: steps, learningRate: 0.005, batchSize: 4, maxLength: 96 }
const CONFIG = { rank: 8, alpha: 16 }

const folder = mkdtempSync(join(tmpdir(), 'lowrank-bench-page-'))
const settings = { configFile: join(root, 'web/vite.config.ts'), logLevel: 'silent' }
await build({ ...settings, build: { outDir: folder, emptyOutDir: true } })
const server = await preview({ ...settings, build: { outDir: folder }, preview: { port: 0, host: '127.0.0.1' } })
const address = `http://127.0.0.1:${server.httpServer.address().port}/`

const asset = (pattern) => readdirSync(join(folder, 'assets')).find((name) => pattern.test(name))
const ORT = `${address}assets/${asset(/^ort\.wasm\..*js$/)}`
const WASM = `${address}assets/${asset(/^ort-wasm-simd-threaded-.*wasm$/)}`

/** The rows of a product: a batch has 4 × 96 tokens. */
const ROWS = 384
const WEIGHTS = [
  [192, 192],
  [192, 64],
  [192, 576],
  [576, 192],
  [192, 2048],
  [2048, 192],
]

/** Makes a graph with one product for each weight. */
function products() {
  const value = (name, dims) => {
    const dim = dims.map((n) =>
      create(onnx.TensorShapeProto_DimensionSchema, { value: { case: 'dimValue', value: BigInt(n) } }),
    )
    const shape = create(onnx.TensorShapeProtoSchema, { dim })
    const tensor = create(onnx.TypeProto_TensorSchema, { elemType: onnx.TensorProto_DataType.FLOAT, shape })
    const type = create(onnx.TypeProtoSchema, { value: { case: 'tensorType', value: tensor } })
    return create(onnx.ValueInfoProtoSchema, { name, type })
  }
  const graph = create(onnx.GraphProtoSchema, {
    name: 'products',
    input: [...new Set(WEIGHTS.map(([k]) => k))].map((k) => value(`x${k}`, [ROWS, k])),
    output: WEIGHTS.map(([, d], i) => value(`y${i}`, [ROWS, d])),
    node: WEIGHTS.map(([k], i) =>
      create(onnx.NodeProtoSchema, { opType: 'Gemm', input: [`x${k}`, `w${i}`], output: [`y${i}`] }),
    ),
    initializer: WEIGHTS.map(([k, d], i) => {
      const data = Float32Array.from({ length: k * d }, (_, j) => Math.sin(j))
      const rawData = new Uint8Array(data.buffer)
      const dataType = onnx.TensorProto_DataType.FLOAT
      return create(onnx.TensorProtoSchema, { name: `w${i}`, dims: [BigInt(k), BigInt(d)], dataType, rawData })
    }),
  })
  const opsetImport = [create(onnx.OperatorSetIdProtoSchema, { version: 17n })]
  return toBinary(onnx.ModelProtoSchema, create(onnx.ModelProtoSchema, { irVersion: 8n, opsetImport, graph }))
}
const PRODUCTS = Buffer.from(products()).toString('base64')

/** Returns the milliseconds of all products, the least of 20 runs. The page runs the source of this function too. */
async function productMillis(ort, graph, rows) {
  const session = await ort.InferenceSession.create(Uint8Array.from(atob(graph), (letter) => letter.charCodeAt(0)))
  const inputs = session.inputNames.map((name) => {
    const k = Number(name.slice(1))
    return [name, new ort.Tensor('float32', new Float32Array(rows * k).fill(0.1), [rows, k])]
  })
  let least = Number.POSITIVE_INFINITY
  for (let i = 0; i < 20; i++) {
    const from = performance.now()
    await session.run(Object.fromEntries(inputs))
    least = Math.min(least, performance.now() - from)
  }
  await session.release()
  return least
}

/** Trains in Node. Returns the tokens per second over all steps, and the milliseconds of the products alone. */
async function inNode() {
  const model = await loadModel(join(root, 'models/union-3m'))
  let rate = 0
  await train({
    model,
    data: DATA,
    ...SETTINGS,
    config: CONFIG,
    on: {
      step: ({ tokensPerSecond }) => {
        rate = tokensPerSecond
      },
    },
  })
  await model.close()
  return { rate, products: await productMillis(ortNode, PRODUCTS, ROWS) }
}

async function inPage() {
  const page = await openPage(address)
  try {
    const until = async (expression) => {
      while (!(await page.evaluate(expression).catch(() => false))) await setTimeout(50)
    }
    // The first visit loads the page twice: a service worker isolates it.
    await until('crossOriginIsolated')
    await until("!document.getElementById('start').disabled")
    const paint = await page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime")
    const ready = await page.evaluate('performance.now()')
    await page.evaluate(`document.getElementById('data').value = ${JSON.stringify(readFileSync(DATA, 'utf8'))}`)
    for (const [id, value] of Object.entries({ steps, 'batch-size': 4, 'max-length': 96, rank: 8 }))
      await page.evaluate(`document.getElementById('${id}').value = '${value}'`)
    await page.evaluate("document.getElementById('start').click()")
    await until("/^Trained/.test(document.getElementById('train-state').textContent)")
    const shown = await page.evaluate("document.getElementById('number-speed').textContent")
    const products = await page.evaluate(`(async () => {
      const ort = await import(${JSON.stringify(ORT)})
      ort.env.wasm.wasmPaths = { wasm: ${JSON.stringify(WASM)} }
      ort.env.wasm.numThreads = parseInt(document.getElementById('machine').textContent)
      return (${productMillis})(ort, ${JSON.stringify(PRODUCTS)}, ${ROWS})
    })()`)
    return { paint, ready, rate: Number(shown.replaceAll(/\D/g, '')), products }
  } finally {
    await page.close()
  }
}

/** Returns the bytes of memory of the tabs' processes, which are descendants of this process. */
function tabBytes() {
  const parents = new Map()
  for (const pid of readdirSync('/proc').filter((name) => /^[0-9]+$/.test(name))) {
    try {
      const [, parent] = /^PPid:\s*([0-9]+)/m.exec(readFileSync(`/proc/${pid}/status`, 'utf8'))
      parents.set(pid, parent)
    } catch {}
  }
  const isOurs = (pid) => pid !== undefined && (pid === String(process.pid) || isOurs(parents.get(pid)))
  let bytes = 0
  for (const pid of parents.keys()) {
    try {
      if (!readFileSync(`/proc/${pid}/cmdline`, 'utf8').includes('--type=renderer') || !isOurs(pid)) continue
      bytes += 1024 * Number(/^Pss:\s*([0-9]+)/m.exec(readFileSync(`/proc/${pid}/smaps_rollup`, 'utf8'))[1])
    } catch {}
  }
  return bytes
}

async function measureMemory(model) {
  const page = await openPage(address)
  let [stage, isDone] = ['page', false]
  const most = {}
  const watching = (async () => {
    for (; !isDone; await setTimeout(500)) most[stage] = Math.max(most[stage] ?? 0, tabBytes())
  })()
  const until = async (expression) => {
    while (!(await page.evaluate(expression).catch(() => false))) await setTimeout(200)
  }
  const shown = (id) => page.evaluate(`document.getElementById('${id}').textContent`)
  try {
    await until("document.body.dataset.ready === '' && crossOriginIsolated")
    stage = 'opening the model'
    await page.drop([model])
    await until("document.getElementById('model-state').textContent.startsWith('Open: ')")
    await page.evaluate(`document.getElementById('data').value = ${JSON.stringify(readFileSync(DATA, 'utf8'))}
      document.getElementById('data').dispatchEvent(new Event('input'))
      document.getElementById('steps').value = '${steps}'`)
    stage = 'training'
    await page.evaluate("document.getElementById('start').click()")
    await until(
      "/^Trained/.test(document.getElementById('train-state').textContent) || !document.getElementById('error').hidden",
    )
    console.log(`${model}: ${await shown('train-state')} ${await shown('error')}`)
    stage = 'answering'
    await until("!document.getElementById('generate').disabled")
    await setTimeout(3000)
    stage = 'after'
    await setTimeout(1000)
  } finally {
    isDone = true
    await watching
    await page.close()
  }
  for (const [name, bytes] of Object.entries(most)) console.log(`${name.padEnd(20)} ${(bytes / 1e9).toFixed(2)} GB`)
}

if (values.memory !== undefined) {
  await measureMemory(values.memory)
  await server.close()
  rmSync(folder, { recursive: true, force: true })
  process.exit(0)
}

const rounds = []
for (let i = 0; i < Number(values.rounds); i++) rounds.push({ node: await inNode(), page: await inPage() })
await server.close()
rmSync(folder, { recursive: true, force: true })

const summary = (numbers, digits = 0) => {
  const sorted = numbers.toSorted((a, b) => a - b)
  return `${sorted[sorted.length >> 1].toFixed(digits)} (${sorted[0].toFixed(digits)} to ${sorted.at(-1).toFixed(digits)})`
}
const row = (name, unit, pick, digits) => console.log(`${name.padEnd(46)} ${summary(rounds.map(pick), digits)} ${unit}`)
console.log(`${cpus()[0].model}, ${cpus().length} threads, Node ${process.version}; medians of ${values.rounds}`)
row('first paint', 'ms', ({ page }) => page.paint)
row('bundled model ready', 'ms', ({ page }) => page.ready)
row('training in Node', 'tokens/s', ({ node }) => node.rate)
row('training in the page', 'tokens/s', ({ page }) => page.rate)
row('time of a step, page / Node', '', ({ node, page }) => node.rate / page.rate, 2)
row('time of plain products, page / Node', '', ({ node, page }) => page.products / node.products, 2)
process.exit(0)
