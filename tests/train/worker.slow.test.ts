import { execFile } from 'node:child_process'
import { mkdir, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath, pathToFileURL } from 'node:url'
import { promisify } from 'node:util'
import { loadModel, nodeRuntime, RuntimeError, type TrainOptions, train } from 'lowrank'
import { afterAll, beforeAll, expect, it } from 'vitest'

const root = fileURLToPath(new URL('../..', import.meta.url))
const MODEL = join(root, 'tests/golden/models/llama-optimum')
const options = {
  data: [
    { text: 'In the beginning God created the heaven and the earth.' },
    { prompt: 'And the', completion: ' earth' },
  ],
  maxSteps: 2,
  threads: 1,
} satisfies Omit<TrainOptions, 'model'>

let folder: string
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'lowrank-worker-'))
})
afterAll(() => rm(folder, { recursive: true }))

/** Writes a module that exports ONNX Runtime. Its version tells which thread imported it. */
async function telltale(): Promise<string> {
  const file = join(folder, 'runtime.mjs')
  const ort = JSON.stringify(import.meta.resolve('onnxruntime-node'))
  await writeFile(
    file,
    `import { threadId } from 'node:worker_threads'
    import ort from ${ort}
    export const { InferenceSession, Tensor } = ort
    export const env = { versions: { node: 'in thread ' + threadId } }`,
  )
  return pathToFileURL(file).href
}

it('runs steps in a thread of their own, and writes what the same thread writes', async () => {
  const model = await loadModel(MODEL, { runtime: nodeRuntime(await telltale()) })
  const { report } = await train({ ...options, model, out: join(folder, 'worker') })
  expect(report.runtime).toMatch(/in thread [1-9]/)
  await model.close()
  const module = await import('onnxruntime-node')
  const inThread = await loadModel(MODEL, { runtime: { module: module as never } })
  await train({ ...options, model: inThread, out: join(folder, 'thread') })
  await inThread.close()
  const [a, b] = await Promise.all(
    ['worker', 'thread'].map((run) => readFile(join(folder, run, 'adapter_model.safetensors'))),
  )
  expect(a.equals(b)).toBe(true)
})

it("gives the worker's errors their classes", async () => {
  const missing = await loadModel(MODEL, { runtime: nodeRuntime('file:///no/such/runtime.mjs') })
  await expect(train({ ...options, model: missing })).rejects.toThrow(RuntimeError)
  await missing.close()
  const other = await loadModel(MODEL, { runtime: nodeRuntime(import.meta.resolve('fast-check')) })
  await expect(train({ ...options, model: other })).rejects.toThrow('this module is not ONNX Runtime')
  await other.close()
})

it.each([
  { how: 'a text', flags: ['--input-type=module', '-e'] },
  { how: 'a text, with options of V8', flags: ['--max-old-space-size=2000', '--input-type=module', '-e'] },
  { how: 'a file, with options of V8', flags: ['--max-old-space-size=2000'] },
])('does not keep the process alive, whether the run ends well or not: $how', async ({ flags }) => {
  const script = `
    import { loadModel, nodeRuntime, train } from 'lowrank'
    const options = ${JSON.stringify(options)}
    const { report } = await train({ ...options, model: ${JSON.stringify(MODEL)} })
    const broken = await loadModel(${JSON.stringify(MODEL)}, { runtime: nodeRuntime('file:///no/such/runtime.mjs') })
    await train({ ...options, model: broken }).catch((error) => console.log(report.steps, error.code))
  `
  const file = join(root, 'out', `worker-${process.pid}.mjs`) // in this package, which it imports by name
  await mkdir(join(root, 'out'), { recursive: true })
  await writeFile(file, script)
  const run = promisify(execFile)(process.execPath, [...flags, flags.includes('-e') ? script : file], {
    cwd: root,
    timeout: 250_000,
  })
  expect((await run.finally(() => rm(file))).stdout.trim()).toBe('2 RUNTIME')
})
