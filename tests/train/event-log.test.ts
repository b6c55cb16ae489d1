import * as ort from 'onnxruntime-node'
import { expect, it } from 'vitest'
import { MemoryDirectory } from '../../src/base/bytes.js'
import { FileError } from '../../src/base/errors.js'
import { loadModel } from '../../src/graph/model-folder.js'
import { NodeDirectory } from '../../src/io/node/files.js'
import type { OrtModule } from '../../src/runtime/onnxruntime.js'
import type { TrainInput } from '../../src/train/options.js'
import { train } from '../../src/train/train.js'

const ROWS = [{ text: 'the sea', target: 'a ship' }]

/** The records of an event file, by their lengths. */
function recordsOf(bytes: Uint8Array): Uint8Array[] {
  const records: Uint8Array[] = []
  for (let at = 0; at < bytes.length; ) {
    const length = Number(new DataView(bytes.buffer, bytes.byteOffset + at).getBigUint64(0, true))
    records.push(bytes.subarray(at + 12, at + 12 + length))
    at += length + 16
  }
  return records
}

const textOf = (record: Uint8Array) => Buffer.from(record).toString('latin1')

async function run(options: Partial<TrainInput>): Promise<void> {
  const model = await loadModel(new NodeDirectory('tests/golden/graphs/bart'), {
    runtime: { module: ort as unknown as OrtModule },
  })
  const config = { rank: 2, targetModules: ['q_proj'] }
  try {
    await train({ model, data: ROWS, maxSteps: 3, threads: 1, config, ...options })
  } finally {
    await model.close()
  }
}

it('writes each step and evaluation, and a restart where a run goes on', async () => {
  const [out, tensorboard] = [new MemoryDirectory(), new MemoryDirectory()]
  const stop = new AbortController()
  const heard: number[] = []
  const step = ({ step: number }: { step: number }) => {
    heard.push(number)
    if (number === 2) stop.abort()
  }
  await run({ out, tensorboard, evalData: ROWS, signal: stop.signal, on: { step } })
  await run({ out, tensorboard, evalData: ROWS, resume: true })
  expect(heard).toEqual([1, 2])
  const [first, second] = [...tensorboard.files].sort(([a], [b]) => (a < b ? -1 : 1))
  expect(first[0]).toMatch(/^events\.out\.tfevents\.\d{10}\./)
  const texts = recordsOf(first[1]).map(textOf)
  expect(texts[0]).toContain('brain.Event:2')
  expect(texts.map((text) => /(train|eval)\/loss/.exec(text)?.[1])).toEqual([undefined, 'eval', 'train', 'train'])
  // Its session log has the status START, and the number of the step that comes first.
  const [, restart, ...rest] = recordsOf(second[1])
  expect([...restart.slice(9)]).toEqual([0x10, 3, 0x3a, 2, 8, 1])
  expect(rest.map(textOf).map((text) => /(train|eval)\/loss/.exec(text)?.[1])).toEqual(['train', 'eval'])
})

it('leaves no file of a run that fails before its first step, and tells before training of a folder that takes none', async () => {
  const tensorboard = new MemoryDirectory()
  await expect(run({ tensorboard, config: { targetModules: ['nowhere'] } })).rejects.toThrow(/nowhere/)
  expect(tensorboard.files.size).toBe(0)
  const stages: string[] = []
  const on = { stage: (stage: string) => void stages.push(stage) }
  const closed = new NodeDirectory('package.json/inside')
  await expect(run({ tensorboard: closed, on })).rejects.toBeInstanceOf(FileError)
  expect(stages).not.toContain('train')
})
