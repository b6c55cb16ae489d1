// Runs that never end: whoever waits for one is told so within seconds, and the command line ends.

import { execFileSync, spawn } from 'node:child_process'
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { pathToFileURL } from 'node:url'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { root, start } from '../cli/lowrank.js'

let folder: string
let model: string
let data: string
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'lowrank-hung-'))
  model = join(folder, 'model')
  execFileSync(process.execPath, [join(root, 'scripts/stress/hanging-model.mjs'), model])
  data = join(folder, 'data.jsonl')
  // Short texts first: a training has made a step before a run hangs.
  const texts = ['a b', 'a b', 'a b', 'a b', 'one two three '.repeat(40)]
  await writeFile(data, texts.map((text) => JSON.stringify({ text })).join('\n'))
})
afterAll(() => rm(folder, { recursive: true, force: true }))

/** Runs a program that prints one line of JSON and then ends itself. */
async function told(program: string): Promise<Record<string, unknown>> {
  const source = `
    const lowrank = await import(${JSON.stringify(pathToFileURL(join(root, 'dist/node.js')).href)})
    const folder = ${JSON.stringify(model)}
    const errorOf = (promise) => promise.then(() => 'no error', ({ name, message }) => ({ name, message }))
    const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms))
    const tell = async (result) => {
      await new Promise((resolve) => process.stdout.write(JSON.stringify(result) + '\\n', resolve))
      process.kill(process.pid, 'SIGKILL')
    }
    ${program}`
  const file = join(folder, `${Math.random()}.mjs`)
  await writeFile(file, source)
  const child = spawn(process.execPath, [file], { stdio: ['ignore', 'pipe', 'inherit'] })
  let text = ''
  for await (const chunk of child.stdout) text += chunk
  return JSON.parse(text)
}

const HUNG = {
  name: 'RuntimeError',
  message: expect.stringMatching(/^ONNX Runtime: a run did not end within 5 seconds .*cannot be interrupted/),
}
const FEEDS = `{ input_ids: { type: 'int64', data: new BigInt64Array(60).fill(5n), dims: [1, 60] } }`

describe('a run that does not end', () => {
  it('lets dispose and all calls under way fail by name, and the session is of no use from then on', async () => {
    const result = await told(`
      const session = await lowrank.openSession(folder)
      const hung = errorOf(session.run(${FEEDS}, { adapter: null }))
      await sleep(500)
      const disposed = await errorOf(session.dispose())
      const later = await errorOf(session.run(${FEEDS}, { adapter: null }))
      await tell({ hung: await hung, disposed, later })`)
    expect(result).toEqual({
      hung: HUNG,
      disposed: HUNG,
      later: { name: 'StateError', message: expect.stringContaining('closed') },
    })
  })

  it('lets an aborted training end with what its last step gave, without saveEvery', async () => {
    const out = join(folder, 'trained')
    const training = (own: string) => `
      const data = [...Array(6).fill('a b'), 'one two three '.repeat(40)].map((text) => ({ text }))
      const settings = { batchSize: 1, maxSteps: 30, threads: 1, config: { rank: 2, dropout: 0.1, seed: 7 } }
      const options = { model: folder, data, ...settings, signal: controller.signal, ${own} }`
    const result = await told(`
      const controller = new AbortController()
      let waiting, last
      const warnings = []
      // With this seed, four steps come before the one that hangs.
      const on = { warning: (message) => warnings.push(message), step: ({ step }) => {
        last = step
        clearTimeout(waiting)
        waiting = setTimeout(() => controller.abort(), 2000)
      } }
      ${training(`on, out: ${JSON.stringify(out)}`)}
      const { report, adapter } = await lowrank.train(options)
      const own = [...adapter.parts('linear')[0].weightB.data]
      await tell({ last, steps: report.steps, interrupted: report.interrupted, warnings, own })`)
    expect(result).toMatchObject({ interrupted: true, steps: result.last })
    expect(result.warnings).toContainEqual(expect.stringContaining('saved as it was after the last step'))
    expect((await readFile(join(out, 'metrics.jsonl'), 'utf8')).trim().split('\n')).toHaveLength(result.last as number)

    // The same run, stopped before the step that hangs.
    const stopped = join(folder, 'stopped')
    await told(`
      const controller = new AbortController()
      const on = { step: ({ step }) => void (step === ${result.last} && controller.abort()) }
      ${training(`on, out: ${JSON.stringify(stopped)}`)}
      await lowrank.train(options)
      await tell({})`)
    for (const file of ['adapter_model.safetensors', 'training-state.safetensors']) {
      expect(await readFile(join(out, file)), file).toEqual(await readFile(join(stopped, file)))
    }
    expect((result.own as number[]).some((value) => value !== 0)).toBe(true)
  })
})

describe('the command line', () => {
  it.each(['SIGINT', 'SIGTERM'] as const)('ends by the first %s while a run hangs, and says why', async (signal) => {
    const args = ['train', '--model', model, '--data', data, '--out', join(folder, signal), '--rank', '2']
    const { child, done } = start([...args, '--batch-size', '1', '--max-steps', '60', '--threads', '1'])
    const isRunning = new Promise<void>((resolve) => {
      child.stderr!.on('data', () => setTimeout(resolve, 6000))
    })
    await Promise.race([isRunning, done])
    child.kill(signal)
    const { code, stderr } = await done
    expect(stderr).toContain('what was under way did not end within 5 seconds')
    expect(stderr).toContain('To continue, run the same command with --resume')
    expect(code).toBe(signal === 'SIGINT' ? 130 : 143)
  })

  it('ends at once by the second signal', async () => {
    const prompt = 'one two three '.repeat(40)
    const { child, done } = start(['generate', '--model', model, '--prompt', prompt])
    await new Promise((resolve) => setTimeout(resolve, 4000))
    child.kill('SIGINT')
    await new Promise((resolve) => setTimeout(resolve, 300))
    child.kill('SIGINT')
    const { code } = await done
    expect(code).toBe(130)
  })
})
