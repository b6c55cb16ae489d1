// Every verb that takes a model, an adapter or a base also takes one from the Hub. The tests check the requests, and
// that the result is the same as with a path.

import { readdirSync, readFileSync } from 'node:fs'
import path from 'node:path'
import { afterEach, beforeEach, describe, expect, test } from 'vitest'
import { push } from '../../src/api/node/handoff.js'
import {
  checkData,
  configureHub,
  inspect,
  LoraAdapter,
  LowrankError,
  loadAdapter,
  loadModel,
  merge,
  openSession,
  planMerge,
  toPlain,
  train,
  unmerge,
} from '../../src/api/node.js'
import { golden, MODEL, publish } from '../files/io/hub/publish.js'
import { current, useHub } from '../files/io/hub/toolkit.js'
import { oneThread } from '../run/models.js'

useHub()

const ADAPTER = golden('f32')
const RUN = ['config.json', 'generation_config.json', 'onnx/model.onnx', 'tokenizer.json', 'tokenizer_config.json']

/** Runs in this thread: workers would run the built files instead of the sources. */
const runtime = { module: oneThread }

const outer = { ...process.env }

beforeEach(() => {
  process.env.HF_HOME = current.home
  process.env.HF_ENDPOINT = current.hub.endpoint
  const others = { 'picture.png': new Uint8Array(10), 'pytorch_model.bin': new Uint8Array(10) }
  publish(current.hub, 'org/union', MODEL, others)
  publish(current.hub, 'org/lora', ADAPTER)
})

afterEach(() => {
  configureHub({ on: undefined, token: undefined, endpoint: undefined })
  process.env = { ...outer }
})

const out = (name: string) => path.join(current.home, name)
const bytesOf = (folder: string, file: string) => readFileSync(path.join(folder, file))

describe('the Hub', () => {
  test('loadModel and openSession load what a model needs to run, and say so', async () => {
    const seen: string[] = []
    const model = await loadModel('org/union', {
      runtime,
      on: { download: ({ name, receivedBytes }) => receivedBytes === 0 && seen.push(name) },
    })
    expect(current.hub.loaded.sort()).toEqual(RUN)
    expect(seen.sort()).toEqual(RUN.map((file) => `org/union/${file}`))
    const session = await openSession(model, { adapters: { lora: 'org/lora' } })
    const { text } = await session.generate('And the', { adapter: 'lora', maxNewTokens: 3 })
    expect(text).not.toBe('')
    await session.dispose()
    await model.close()
  })

  test('checkData loads what encoding needs, and no graph', async () => {
    const data = [{ prompt: 'Who is it? ', completion: 'It is the captain.' }]
    const report = await checkData({ model: 'org/union', data, preview: 1 })
    expect(current.hub.loaded.sort()).toEqual(RUN.filter((file) => !file.endsWith('.onnx')))
    expect(report).toEqual(await checkData({ model: MODEL, data, preview: 1 }))
    expect(report.lengths!.unit).toBe('tokens')
  })

  test('loadAdapter loads the two files of an adapter', async () => {
    configureHub({ on: { download: (event) => current.progress.push(event) } })
    const adapter = await loadAdapter('hf:org/lora@main')
    const local = await loadAdapter(ADAPTER)
    expect(await inspect(adapter)).toEqual(await inspect(local))
    expect(current.hub.loaded.sort()).toEqual(['adapter_config.json', 'adapter_model.safetensors'])
    expect(new Set(current.progress.map(({ name }) => name)).size).toBe(2)
  })

  test('inspect reads the head of a large file and no more', async () => {
    const report = await inspect('org/union')
    expect(report.kind).toBe('checkpoint')
    expect(current.hub.loaded).not.toContain('onnx/model.onnx')
    const ranges = current.hub.seen.filter(({ origin }) => origin === 'storage').map(({ range }) => range)
    expect(ranges.length).toBeGreaterThan(0)
    expect(ranges).not.toContain(undefined)
    expect((await inspect('org/union', { dtype: 'fp32' })).kind).toBe('onnx')
    const fit = await inspect('org/lora', { base: 'org/union' })
    expect(fit).toMatchObject({ kind: 'adapter', problems: [] })
  })

  test('merge and unmerge write what they write from paths, with the files that belong to the base', async () => {
    const plan = await planMerge({
      base: 'org/union',
      adapters: 'org/lora',
      out: out('planned'),
      format: 'safetensors',
    })
    const ranges = current.hub.seen
      .filter(({ path: url }) => url.endsWith('/model.safetensors'))
      .map(({ range }) => range)
    expect(ranges.length).toBeGreaterThan(0)
    expect(ranges).not.toContain(undefined)
    const options = { format: 'safetensors', threads: 1 } as const
    const report = await merge({ base: 'org/union', adapters: ['org/lora'], out: out('from-hub'), ...options })
    await merge({ base: MODEL, adapters: ADAPTER, out: out('from-path'), ...options })
    expect(plan.changed).toBe(report.changed)
    expect(
      Buffer.compare(bytesOf(out('from-hub'), 'model.safetensors'), bytesOf(out('from-path'), 'model.safetensors')),
    ).toBe(0)
    const baseFiles = ['config.json', 'generation_config.json', 'tokenizer.json', 'tokenizer_config.json']
    expect(readdirSync(out('from-hub'))).toEqual(expect.arrayContaining(baseFiles))
    expect(current.hub.loaded).not.toEqual(expect.arrayContaining(['picture.png']))
    expect(current.hub.loaded).not.toEqual(expect.arrayContaining(['onnx/model.onnx']))
    const back = { merged: out('from-hub'), adapters: 'org/lora', out: out('back'), threads: 1 }
    expect((await unmerge(back)).changed).toBe(report.changed)
  })

  test('merge writes into a graph too', async () => {
    const base = 'hf:org/union/onnx/model.onnx'
    const report = await merge({ base, adapters: 'org/lora', out: out('graph.onnx'), threads: 1 })
    const local = path.join(MODEL, 'onnx', 'model.onnx')
    await merge({ base: local, adapters: ADAPTER, out: out('local.onnx'), threads: 1 })
    expect(report.changed).toBeGreaterThan(0)
    expect(Buffer.compare(bytesOf(current.home, 'graph.onnx'), bytesOf(current.home, 'local.onnx'))).toBe(0)
  })

  test('train learns on a model of the Hub, which the adapter names', async () => {
    const data = [{ prompt: 'Who is it? ', completion: 'It is the captain.' }]
    const model = await loadModel('org/union', { runtime, dtype: 'fp32' })
    const { adapter } = await train({ model, data, maxSteps: 1 })
    await model.close()
    expect(adapter).toBeInstanceOf(LoraAdapter)
    expect(adapter.config.baseModel).toBe('org/union')
    await expect(train({ model: 'org/union', dtype: 'q4', data })).rejects.toThrow(/no graph in q4.*got fp32/)
  })

  test('toPlain finds a start in a checkpoint of the Hub', async () => {
    publish(current.hub, 'org/olora', golden('olora'))
    const plain = await toPlain('org/olora', { base: 'org/union' })
    const local = await toPlain(golden('olora'), { base: MODEL })
    expect(await inspect(plain)).toEqual(await inspect(local))
  })

  test('configureHub takes a token and an address, and names what is wrong', async () => {
    current.hub.repositories.get('org/lora')!.access = 'private'
    configureHub({ token: 'hf_right', endpoint: `${current.hub.endpoint}/` })
    process.env.HF_ENDPOINT = 'http://127.0.0.1:9'
    expect((await loadAdapter('org/lora')).size).toBeGreaterThan(0)
    expect(() => configureHub({ tokn: 'x' } as never)).toThrow(
      /^tokn: configureHub has no such option. Did you mean token\?/,
    )
    expect(() => configureHub({ endpoint: 'hub' })).toThrow(/^endpoint: not valid/)
  })

  test('no message repeats a password, of HF_ENDPOINT, of configureHub or of a source', async () => {
    const secret = 'https://me:S3CRET@hub.example'
    const calls: (() => unknown)[] = []
    for (const address of [secret, secret.replace('https', 'ftp'), secret.replace('https:', ''), `${secret}:x/a`]) {
      const withAddress = (call: () => unknown) => () => {
        process.env.HF_ENDPOINT = address
        return call()
      }
      calls.push(() => configureHub({ endpoint: address }))
      calls.push(
        () => loadModel(address),
        () => loadModel(`hf:${address}`),
        () => loadAdapter(`${address}/org/lora`),
      )
      calls.push(withAddress(() => loadModel('org/union')))
      calls.push(withAddress(() => push(ADAPTER, 'me/sea')))
    }
    for (const call of calls) {
      const error = await (async () => call())().catch((error: Error) => error)
      expect(error).toBeInstanceOf(LowrankError)
      expect((error as Error).message).not.toContain('S3CRET')
    }
  })

  test('ends when its signal says so', async () => {
    const signal = AbortSignal.abort(new DOMException('stopped', 'AbortError'))
    await expect(loadModel('org/union', { signal })).rejects.toMatchObject({ name: 'AbortError' })
    const job = { base: 'org/union', adapters: 'org/lora', out: out('stopped'), signal }
    await expect(merge(job)).rejects.toMatchObject({ name: 'AbortError' })
  })
})
