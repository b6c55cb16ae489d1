// The tools for adapters on large shapes, beside PyTorch, PEFT's way, and cp.
// Usage: npm run build && node bench/tools.mjs [--part svd|combine|extract|gguf] [--python PATH] [--size 4096] [--layers 22]
// - svd: rank 64 of a size × size change, as extract finds it. With an interpreter that has torch: torch.svd_lowrank on the same matrix
//   with both errors, and torch.linalg.svd of a matrix of a quarter of the size, whose time grows with the third power.
// - combine: ten rank-16 adapters of TinyLlama's shapes to rank 16, by the command line. With torch: what PEFT does for one k_proj and one
//   q_proj, an SVD of the full matrix (add_weighted_adapter, combination_type svd).
// - extract: a checkpoint pair with `--layers` layers of TinyLlama's shapes, by the command line. PyTorch's part is that of `svd`.
// - gguf: an adapter of 100 MB into a GGUF file, and cp of its file.
import { spawnSync } from 'node:child_process'
import {
  copyFileSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readFileSync,
  rmSync,
  statSync,
  writeFileSync,
  writeSync,
} from 'node:fs'
import { cpus, loadavg, tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'
import { disposeKernels } from '../dist/kernels/index.js'
import { inMemory, streamedSvd } from '../dist/linalg/streamed-svd.js'
import { convertAdapter, LoraAdapter, saveAdapter } from '../dist/node.js'

const { values } = parseArgs({
  options: {
    part: { type: 'string' },
    python: { type: 'string' },
    size: { type: 'string', default: '4096' },
    layers: { type: 'string', default: '22' },
  },
})
const [size, layers] = [Number(values.size), Number(values.layers)]
const folder = mkdtempSync(join(tmpdir(), 'lowrank-tools-'))
const cli = fileURLToPath(new URL('../dist/cli/main.js', import.meta.url))
const SHAPES = {
  'self_attn.q_proj': [2048, 2048],
  'self_attn.k_proj': [256, 2048],
  'self_attn.v_proj': [256, 2048],
  'self_attn.o_proj': [2048, 2048],
  'mlp.gate_proj': [5632, 2048],
  'mlp.up_proj': [5632, 2048],
  'mlp.down_proj': [2048, 5632],
}

let state = 1
/** Quick noise, about N(0, 1/3). */
function noise(length, scale = 1) {
  const result = new Float32Array(length)
  for (let i = 0; i < length; i++) {
    state = (Math.imul(state, 1664525) + 1013904223) | 0
    result[i] = (scale * state) / 2 ** 31
  }
  return result
}

function run(...args) {
  const start = performance.now()
  const { status, stdout, stderr } = spawnSync(process.execPath, [cli, ...args, '--json'], {
    encoding: 'utf8',
    maxBuffer: 2 ** 28,
  })
  if (status !== 0) throw new Error(stderr)
  const { peakRssBytes, error } = JSON.parse(stdout)
  return { seconds: (performance.now() - start) / 1000, rss: Math.round(peakRssBytes / 1e6), error }
}

function torch(script, ...args) {
  if (values.python === undefined) return undefined
  const { stdout, stderr, status } = spawnSync(
    values.python,
    ['-c', `import sys, time, torch, numpy\ntorch.set_num_threads(${cpus().length})\n${script}`, ...args],
    { encoding: 'utf8' },
  )
  if (status !== 0) throw new Error(stderr)
  return stdout.trim()
}

/** Falling singular values over a floor of noise, as fine-tuning leaves them. */
function change(n) {
  const data = noise(n * n, 0.5)
  for (let r = 0; r < 100; r++) {
    const [a, b] = [noise(n, 2.5 / (r + 1)), noise(n)]
    for (let i = 0; i < n; i++) for (let j = 0; j < n; j++) data[i * n + j] += a[i] * b[j]
  }
  return data
}

async function benchSvd() {
  const data = change(size)
  const matrix = inMemory({ data, shape: [size, size] })
  await streamedSvd(inMemory({ data: data.subarray(0, 300 * 300), shape: [300, 300] }), 8)
  const start = performance.now()
  const { s } = await streamedSvd(matrix, 64)
  const seconds = (performance.now() - start) / 1000
  const kept = s.reduce((sum, value) => sum + value ** 2, 0)
  console.log(`svd ${size}², rank 64: ${seconds.toFixed(2)} s, error ${Math.sqrt(1 - kept / matrix.energy).toFixed(5)}`)
  const file = join(folder, 'matrix')
  writeFileSync(file, data)
  const peer = torch(
    `w = torch.from_numpy(numpy.fromfile(sys.argv[1], dtype=numpy.float32).reshape(${size}, ${size}))
for q, n in ((64, 2), (64, 6), (76, 4)):
    t = time.perf_counter(); u, s, v = torch.svd_lowrank(w, q=q, niter=n); t = time.perf_counter() - t
    u, s, v = u[:, :64], s[:64], v[:, :64]
    print(f"torch.svd_lowrank(q={q}, niter={n}): {t:.2f} s, error {float(torch.linalg.norm(w - (u * s) @ v.T) / torch.linalg.norm(w)):.5f}")
w = w[: ${size} // 4, : ${size} // 4].contiguous()
t = time.perf_counter(); torch.linalg.svd(w, full_matrices=False); t = time.perf_counter() - t
print(f"torch.linalg.svd of {w.shape[0]}²: {t:.2f} s, so about {64 * t:.0f} s of ${size}²")`,
    file,
  )
  if (peer !== undefined) console.log(peer)
}

async function benchCombine() {
  const inputs = []
  for (let i = 0; i < 10; i++) {
    const adapter = new LoraAdapter({
      rank: 16,
      alpha: 32,
      targetModules: Object.keys(SHAPES).map((name) => name.split('.')[1]),
    })
    for (let layer = 0; layer < layers; layer++) {
      for (const [name, [d, k]] of Object.entries(SHAPES)) {
        adapter.addFactors(
          `model.layers.${layer}.${name}`,
          { data: noise(16 * k), shape: [16, k] },
          { data: noise(d * 16), shape: [d, 16] },
        )
      }
    }
    const path = join(folder, `adapter-${i}`)
    await saveAdapter(adapter, path, { dtype: 'F16' })
    inputs.push('--adapter', path)
  }
  const { seconds, rss } = run('combine', ...inputs, '--rank', '16', '--out', join(folder, 'combined'))
  console.log(`combine ten adapters, ${layers} layers of TinyLlama: ${seconds.toFixed(1)} s, ${rss} MB`)
  const peer = torch(`for d, k, count in ((256, 2048, 2), (1024, 1024, 0)):
    deltas = [torch.randn(d, 16) @ torch.randn(16, k) for _ in range(10)]
    t = time.perf_counter(); torch.linalg.svd(torch.stack(deltas).sum(dim=0), full_matrices=True); t = time.perf_counter() - t
    print(f"PEFT's SVD of one ({d}, {k}): {t:.2f} s")`)
  if (peer !== undefined) console.log(peer)
}

/** A checkpoint in bf16, written tensor by tensor: small noise, and the same with a low-rank change. */
function writePair() {
  const names = Array.from({ length: layers }, (_, i) =>
    Object.entries(SHAPES).map(([name, shape]) => [`model.layers.${i}.${name}.weight`, shape]),
  ).flat()
  let at = 0
  const header = {}
  for (const [name, shape] of names) {
    const bytes = 2 * shape[0] * shape[1]
    header[name] = { dtype: 'BF16', shape, data_offsets: [at, at + bytes] }
    at += bytes
  }
  const json = Buffer.from(JSON.stringify(header).padEnd(Math.ceil(JSON.stringify(header).length / 8) * 8))
  const length = Buffer.alloc(8)
  length.writeBigUInt64LE(BigInt(json.length))
  const files = ['base', 'tuned'].map((name) => {
    mkdirSync(join(folder, name))
    const file = openSync(join(folder, name, 'model.safetensors'), 'w')
    writeSync(file, length)
    writeSync(file, json)
    return file
  })
  for (const [, [d, k]] of names) {
    const base = noise(d * k, 0.05)
    const tuned = base.slice()
    for (let r = 0; r < 4; r++) {
      const [a, b] = [noise(d, 0.02 / (r + 1)), noise(k)]
      for (let i = 0; i < d; i++) for (let j = 0; j < k; j++) tuned[i * k + j] += a[i] * b[j]
    }
    for (const [i, own] of [base, tuned].entries()) {
      const bits = new Uint32Array(own.buffer)
      writeSync(files[i], new Uint8Array(Uint16Array.from(bits, (value) => value >>> 16).buffer))
    }
  }
  return at
}

function benchExtract() {
  const bytes = writePair()
  const args = [
    '--base',
    join(folder, 'base'),
    '--fine-tuned',
    join(folder, 'tuned'),
    '--rank',
    '16',
    '--out',
    join(folder, 'extracted'),
  ]
  const { seconds, rss, error } = run('extract', ...args)
  console.log(
    `extract, two checkpoints of ${(bytes / 1e9).toFixed(2)} GB: ${seconds.toFixed(1)} s, ${rss} MB, error ${error.toFixed(4)}`,
  )
}

async function benchGguf() {
  const adapter = new LoraAdapter({
    rank: 32,
    alpha: 32,
    targetModules: Object.keys(SHAPES).map((name) => name.split('.')[1]),
  })
  for (let layer = 0; layer < 22; layer++) {
    for (const [name, [d, k]] of Object.entries(SHAPES)) {
      adapter.addFactors(
        `model.layers.${layer}.${name}`,
        { data: noise(32 * k), shape: [32, k] },
        { data: noise(d * 32), shape: [d, 32] },
      )
    }
  }
  const [source, out] = [join(folder, 'hundred'), join(folder, 'hundred.gguf')]
  await saveAdapter(adapter, source)
  const config = {
    architectures: ['LlamaForCausalLM'],
    num_attention_heads: 32,
    num_key_value_heads: 4,
    hidden_size: 2048,
    tie_word_embeddings: false,
  }
  mkdirSync(join(folder, 'model'))
  writeFileSync(join(folder, 'model', 'config.json'), JSON.stringify(config))
  const weights = join(source, 'adapter_model.safetensors')
  const times = []
  for (let i = 0; i < 3; i++) {
    const start = performance.now()
    copyFileSync(weights, `${weights}.copy`)
    rmSync(`${weights}.copy`)
    times.push((performance.now() - start) / 1000)
  }
  const start = performance.now()
  await convertAdapter(source, { to: 'gguf', base: join(folder, 'model'), out })
  const inProcess = (performance.now() - start) / 1000
  rmSync(out)
  const { seconds, rss } = run('convert', source, '--to', 'gguf', '--base', join(folder, 'model'), '--out', out)
  const size = (statSync(weights).size / 1e6).toFixed(0)
  console.log(
    `PEFT → GGUF, ${size} MB: ${inProcess.toFixed(2)} s in a running program, ${seconds.toFixed(2)} s and ${rss} MB as a command; a copy of the file: ${Math.min(...times).toFixed(2)} s`,
  )
  if (readFileSync(out).subarray(0, 4).toString() !== 'GGUF') throw new Error('no GGUF file')
}

const PARTS = { svd: benchSvd, combine: benchCombine, extract: benchExtract, gguf: benchGguf }
console.log(`${cpus().length} × ${cpus()[0].model}, Node ${process.version}, load ${loadavg()[0].toFixed(1)}`)
try {
  for (const [name, part] of Object.entries(PARTS)) if (values.part === undefined || values.part === name) await part()
} finally {
  disposeKernels()
  rmSync(folder, { recursive: true, force: true })
}
