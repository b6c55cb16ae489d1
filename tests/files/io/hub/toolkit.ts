// A Hub in this process, a separate cache for each test, and helpers for tests of both.

import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { afterEach, beforeEach, expect } from 'vitest'
import { type DownloadProgress, FileError } from '../../../../src/api/node.js'
import { readAll } from '../../../../src/core/base/bytes.js'
import { type OpenHubOptions, openHub } from '../../../../src/files/io/hub/node/open-hub.js'
import { type HubSource, parseSource } from '../../../../src/files/io/source.js'
import { FakeHub, sha256 } from './server.js'

export const text = (content: string) => new TextEncoder().encode(content)
/** Bytes in which missing or moved parts are noticed. */
export const noise = (byteLength: number) => Uint8Array.from({ length: byteLength }, (_, i) => (i * 2654435761) >>> 13)

export const WEIGHTS = noise(300_000)
export const FILES = {
  'config.json': text('{"model_type": "llama"}'),
  'README.md': text('# A model'),
  'onnx/model.onnx': WEIGHTS,
  'pytorch_model.bin': noise(5000),
}
/** Far faster than comparing arrays element by element. */
export const isWeights = (bytes: Uint8Array) => Buffer.compare(bytes, WEIGHTS) === 0

/** The Hub and the records of the current test. */
export const current = { home: '', hub: new FakeHub(), progress: [] as DownloadProgress[], warnings: [] as string[] }

/** Sets `current` before each test. Test files that use it call this once. */
export function useHub(): void {
  beforeEach(async () => {
    current.home = await mkdtemp(path.join(tmpdir(), 'lowrank-hub-'))
    current.hub = await new FakeHub().start()
    current.hub.repositories.set('org/model', { files: FILES, lfs: ['onnx/model.onnx', 'pytorch_model.bin'] })
    current.progress = []
    current.warnings = []
  })

  afterEach(async () => {
    await current.hub.stop()
    await rm(current.home, { recursive: true, force: true })
  })
}

export function open(id: string, more: Record<string, string> = {}, options: OpenHubOptions = {}) {
  return openHub(parseSource(`hf:${id}`, { where: 'model' }) as HubSource, {
    variables: { HF_HOME: current.home, HF_ENDPOINT: current.hub.endpoint, ...more },
    times: { stallMs: 2000, retryMs: 5 },
    onDownload: (event) => current.progress.push(event),
    onWarning: (message) => current.warnings.push(message),
    ...options,
  })
}

export async function contentOf(id: string, file: string, more?: Record<string, string>, options?: OpenHubOptions) {
  const source = await (await open(id, more, options)).open(file)
  try {
    return await readAll(source)
  } finally {
    await source.close()
  }
}

export async function failure(promise: Promise<unknown>): Promise<FileError> {
  const error = await promise.then(
    () => undefined,
    (reason) => reason,
  )
  expect(error).toBeInstanceOf(FileError)
  return error
}

export const inCache = (...parts: string[]) => path.join(current.home, 'hub', 'models--org--model', ...parts)
export const blob = (bytes: Uint8Array) => inCache('blobs', sha256(bytes))
