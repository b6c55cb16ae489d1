// What a program that passes no `on` shows in a terminal: bars of work that takes over 2 s, and nothing with `on: {}`.

import { afterEach, beforeEach, expect, test, vi } from 'vitest'
import { watchDownloads, watchMerge, watchOnTerminal } from '../../../src/api/node/watch.js'
import { configureHub, MemoryDirectory, merge, openSession, train } from '../../../src/api/node.js'
import { enginesHere } from '../../engines-here.js'
import { MODEL, publish } from '../../files/io/hub/publish.js'
import { current, useHub } from '../../files/io/hub/toolkit.js'
import { oneThread, openModel } from '../../run/models.js'

useHub()

let shown = ''
let now = 0
const wasTerminal = process.stderr.isTTY

beforeEach(() => {
  shown = ''
  now = 0
  // Tests of commands set a listener of their own, for the whole process.
  configureHub({ on: undefined })
  process.stderr.isTTY = true
  vi.spyOn(performance, 'now').mockImplementation(() => now)
  vi.spyOn(process.stderr, 'write').mockImplementation((text) => {
    shown += text
    return true
  })
})

afterEach(() => {
  vi.restoreAllMocks()
  process.stderr.isTTY = wasTerminal
})

const written = (writtenBytes: number) => ({ writtenBytes, totalBytes: 4e6 })

test('a merge of over 2 s has a bar that ends full, a shorter one none', () => {
  const short = watchMerge()!
  now = 1900
  short.progress!(written(2e6))
  short.progress!(written(4e6))
  expect(shown).toBe('')
  const long = watchMerge()!
  now += 2100
  long.progress!(written(1e6))
  expect(shown).toMatch(/merging █{8}░{22} 25 % of 4\.0 MB$/)
  now += 500
  long.progress!(written(2e6))
  expect(shown).not.toMatch(/50 %/)
  long.progress!(written(4e6))
  expect(shown).toMatch(/100 % of 4\.0 MB\n$/)
})

test('files that download for over 2 s have a bar', () => {
  const download = watchDownloads()!
  const tell = (name: string, receivedBytes: number) => download({ name, byteLength: 1e6, receivedBytes })
  tell('a\x1b.onnx', 0)
  now = 1000
  tell('small.json', 0)
  tell('small.json', 1e6)
  now = 2500
  tell('a\x1b.onnx', 5e5)
  expect(shown).toMatch(/loading 2 files █{23}░{7} 75 % of 2\.0 MB$/)
  expect(shown).not.toMatch(/small/)
})

test('without a terminal nothing is shown', () => {
  process.stderr.isTTY = false
  expect([watchMerge(), watchDownloads(), watchOnTerminal()]).toEqual([undefined, undefined, undefined])
})

test('merge draws its bar if `on` is left out, and `on: {}` is silent', async () => {
  vi.mocked(performance.now).mockImplementation(() => (now += 3000))
  const job = { base: 'models/union-3m', adapters: 'tests/golden/peft/f32' }
  await merge({ ...job, on: {}, out: new MemoryDirectory() })
  expect(shown).toBe('')
  await merge({ ...job, out: new MemoryDirectory() })
  expect(shown).toMatch(/merging .* 100 % of/)
})

test('opening a session shows nothing', async () => {
  vi.mocked(performance.now).mockImplementation(() => (now += 3000))
  const model = await openModel('models/union-3m')
  const session = await openSession({ ...model, runtime: { module: oneThread } } as typeof model, { threads: 1 })
  await session.dispose()
  expect(shown).toBe('')
})

test('a training shows the download of its model and its steps, unless the program listens', async () => {
  const endEngines = enginesHere()
  const outer = { ...process.env }
  publish(current.hub, 'org/union', MODEL)
  Object.assign(process.env, { HF_HOME: current.home, HF_ENDPOINT: current.hub.endpoint })
  vi.mocked(performance.now).mockImplementation(() => (now += 3000))
  const data = [{ prompt: 'Who is it? ', completion: 'It is the captain.' }]
  try {
    await train({ model: 'org/union', data, maxSteps: 2 })
    expect(shown).toMatch(/loading org\/union\/onnx\/model\.onnx █* *░* \d+ % of 12\.\d MB/)
    expect(shown).toMatch(/loading org\/union\/onnx\/model\.onnx █{30} 100 % of/)
    expect(shown).toMatch(/step 1 of 2, loss \d+\.\d{3}, \d+ s left\r.*step 2 of 2, loss \d+\.\d{3}\n/s)
    for (const on of [{}, { step: () => {} }]) {
      shown = ''
      await train({ model: 'org/union', data, maxSteps: 1, on })
      expect(shown).toBe('')
    }
    for await (const _ of train({ model: 'org/union', data, maxSteps: 1 }));
    expect(shown).toBe('')
  } finally {
    process.env = outer
    endEngines()
  }
})
