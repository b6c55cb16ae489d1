// The randomized SVD of a matrix without any gap among its singular values, which is the hardest kind: uniform random
// numbers. Usage: npm run build && node bench/svd.mjs [--size 4096] [--rank 64] [--python PATH]. With an interpreter
// that has numpy, the energy is compared with LAPACK's and the time with that of its SVD, which is a full one.
import { spawnSync } from 'node:child_process'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { cpus, tmpdir } from 'node:os'
import { join } from 'node:path'
import { parseArgs } from 'node:util'
import { defaultKernels, disposeKernels } from '../dist/kernels/index.js'
import { randomizedSvd } from '../dist/linalg/randomized-svd.js'

const { values } = parseArgs({
  options: {
    size: { type: 'string', default: '4096' },
    rank: { type: 'string', default: '64' },
    python: { type: 'string' },
  },
})
const [size, rank] = [Number(values.size), Number(values.rank)]
const data = Float32Array.from({ length: size * size }, () => 2 * Math.random() - 1)
const start = performance.now()
const { s } = randomizedSvd({ data, shape: [size, size] }, rank, { seed: 1 })
const seconds = (performance.now() - start) / 1000
const energy = s.reduce((sum, value) => sum + value * value, 0)
console.log(`${cpus().length} × ${cpus()[0].model}, Node ${process.version}, ${defaultKernels().name}`)
console.log(`${size} × ${size}, rank ${rank}: ${seconds.toFixed(2)} s`)
disposeKernels()

if (values.python !== undefined) {
  const folder = mkdtempSync(join(tmpdir(), 'lowrank-svd-'))
  const file = join(folder, 'matrix')
  writeFileSync(file, data)
  const script = `import numpy, sys, time
w = numpy.fromfile(sys.argv[1], dtype=numpy.float32).reshape(${size}, ${size}).astype(numpy.float64)
start = time.perf_counter(); s = numpy.linalg.svd(w)[1]; seconds = time.perf_counter() - start
print(seconds, (s[:${rank}] ** 2).sum())`
  const { stdout, stderr } = spawnSync(values.python, ['-c', script, file], { encoding: 'utf8' })
  rmSync(folder, { recursive: true })
  if (stdout === '') throw new Error(stderr)
  const [peerSeconds, optimum] = stdout.trim().split(' ').map(Number)
  console.log(`LAPACK, all of it: ${peerSeconds.toFixed(1)} s, ${(peerSeconds / seconds).toFixed(1)} × as long`)
  console.log(`energy missed: ${(1 - energy / optimum).toExponential(1)} of the optimum`)
}
