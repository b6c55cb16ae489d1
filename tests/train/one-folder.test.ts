// Several trainings with the same folder on disk: one of them gets it, and all files in it belong to this training.

import { existsSync, rmSync, writeFileSync } from 'node:fs'
import { mkdir, mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises'
import { hostname, tmpdir } from 'node:os'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import * as ort from 'onnxruntime-node'
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from 'vitest'
import { loadModel, type Model, type StepEvent } from '../../src/api/node.js'
import { NodeDirectory } from '../../src/files/io/node/files.js'
import { newToken } from '../../src/files/io/node/owner.js'
import type { TrainInput } from '../../src/train/options.js'
import { train as trainAdapter } from '../../src/train/train.js'

const WRITER = '.lowrank-writer'
const golden = fileURLToPath(new URL('../golden/models/llama-optimum', import.meta.url))
const data = Array.from({ length: 8 }, (_, i) => ({ text: `The whale number ${i} swims` }))

let model: Model
let folder: string
beforeAll(async () => {
  model = await loadModel(golden, { runtime: { module: ort } })
})
afterAll(() => model.close())
beforeEach(async () => {
  folder = await mkdtemp(path.join(tmpdir(), 'one-folder-'))
})
afterEach(() => rm(folder, { recursive: true, force: true }))

const train = (out: string, options: Partial<TrainInput> = {}) =>
  trainAdapter({
    model,
    data,
    out: new NodeDirectory(out),
    config: { rank: 2 },
    maxLength: 8,
    batchSize: 2,
    maxSteps: 4,
    threads: 1,
    ...options,
  })
const steps = async (out: string) =>
  (await readFile(path.join(out, 'metrics.jsonl'), 'utf8'))
    .trim()
    .split('\n')
    .map((line) => JSON.parse(line).step)

describe('trainings into one folder', () => {
  it('that come at once: one has the folder, the others are refused by name', async () => {
    const out = path.join(folder, 'run')
    const results = await Promise.allSettled([train(out), train(out), train(out)])
    const reasons = results.flatMap((result) => (result.status === 'rejected' ? [result.reason] : []))
    expect(reasons).toHaveLength(2)
    for (const reason of reasons) {
      expect(reason).toMatchObject({
        code: 'FILE',
        where: out,
        what: `another training is writing here: process ${process.pid} on ${hostname()}`,
      })
    }
    expect(await steps(out)).toEqual([1, 2, 3, 4])
    expect(existsSync(path.join(out, WRITER))).toBe(false)
  })

  it.each(['overwrite', 'resume'] as const)('that come later are refused too: %s', async (use) => {
    const out = path.join(folder, 'run')
    let later: Promise<unknown> | undefined
    const on = {
      step: ({ step }: StepEvent) => {
        if (step === 3) later = train(out, { [use]: true }).catch((error) => error)
      },
    }
    await train(out, { on, saveEvery: 1, maxSteps: 12 })
    expect(await later).toMatchObject({ code: 'FILE', what: expect.stringMatching(/another training|is finished/) })
    expect(await steps(out)).toEqual(Array.from({ length: 12 }, (_, i) => i + 1))
  })

  it('that lost it to another one write nothing more', async () => {
    const out = path.join(folder, 'run')
    const on = {
      step: ({ step }: StepEvent) => {
        if (step !== 2) return
        rmSync(path.join(out, WRITER), { recursive: true })
        writeFileSync(path.join(out, 'metrics.jsonl'), 'theirs')
      },
    }
    await expect(train(out, { on, saveEvery: 2 })).rejects.toMatchObject({
      code: 'FILE',
      what: `another training has taken over this folder, or its lock ${WRITER} was removed`,
    })
    expect(await readFile(path.join(out, 'metrics.jsonl'), 'utf8')).toBe('theirs')
  })

  it('that were killed are no obstacle, and leave nothing', async () => {
    const out = path.join(folder, 'run')
    await mkdir(path.join(out, WRITER), { recursive: true })
    const dead = newToken().replace(/-\d+-(\d*)-/, '-4194305-$1-')
    await writeFile(path.join(out, WRITER, dead), hostname())
    // A training was killed before its lock got its name.
    await mkdir(path.join(out, `.${WRITER}.${dead}.tmp`, WRITER), { recursive: true })
    await train(out)
    expect((await readdir(out)).sort()).toEqual([
      'README.md',
      'adapter_config.json',
      'adapter_model.safetensors',
      'lowrank.json',
      'metrics.jsonl',
    ])
  })

  it('that fail before they save leave no folder', async () => {
    const out = path.join(folder, 'new', 'run')
    const on = {
      step: () => {
        throw new Error('stop')
      },
    }
    await expect(train(out, { on })).rejects.toThrow('stop')
    expect(await readdir(folder)).toEqual([])
  })
})
