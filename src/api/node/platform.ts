// The platform for Node, Bun and Deno: strings can be paths, and sessions run in worker threads.

import { readFileSync } from 'node:fs'
import { freemem } from 'node:os'
import { buffer } from 'node:stream/consumers'
import { MemorySource } from '../../core/base/bytes.js'
import { FileError } from '../../core/base/errors.js'
import { localPath, locate, NodeDirectory, openFile } from '../../files/io/node/files.js'
import type { EngineKind } from '../../onnx/runtime/host.js'
import { resolveNodeRuntime } from '../../onnx/runtime/node/runtime.js'
import { spawnNodeWorker } from '../../onnx/runtime/node/worker.js'
import { hubOptions } from '../hub.js'
import type { Platform } from '../platform/platform.js'
import { openExampleFile } from './example-file.js'
import { watchDownloads, watchMerge, watchOnTerminal } from './watch.js'

const WORKERS: Record<EngineKind, URL> = {
  train: new URL('../../train/engine/node/worker.js', import.meta.url),
  infer: new URL('../../run/node/worker.js', import.meta.url),
}

const runtimeOf = (specifier: string) => ({ specifier, spawn: (kind: EngineKind) => spawnNodeWorker(WORKERS[kind]) })

function notPath({ where, what }: FileError): FileError {
  return new FileError({
    where,
    what,
    hint: "A string is the path of a file. To train on a text itself, give a record: { text: '…' }",
  })
}

/**
 * Reads how much memory is anonymous and how much is mapped files:
 * https://man7.org/linux/man-pages/man5/proc_pid_status.5.html
 */
function memoryUse() {
  if (process.platform !== 'linux') return undefined
  const status = readFileSync('/proc/self/status', 'utf8')
  const bytes = (name: string) => 1024 * Number(new RegExp(`^${name}:\\s+(\\d+)`, 'm').exec(status)?.[1] ?? 0)
  return { anonymous: bytes('RssAnon'), mapped: bytes('RssFile') }
}

export const nodePlatform: Platform = {
  open: async (text, where, options) =>
    (await import('../../files/io/node/open-source.js')).openText(text, where, options),
  openData: async (given, where) => {
    if (given === '-') return new MemorySource(await buffer(process.stdin), 'standard input')
    const text = localPath(given, where)
    const { directory, file } = await locate(text).catch((error: unknown) => {
      throw /\s/.test(text) && error instanceof FileError ? notPath(error) : error
    })
    return file === undefined ? directory : openFile(text)
  },
  decodeImage: async (file) => (await import('../../model/images/node/decode.js')).decodeWithSharp(file),
  target: (text, where) => new NodeDirectory(localPath(text, where)),
  openJob: async () => (await import('../../merge/node/job.js')).openPathJob,
  async hubAccess() {
    const { hubEnvironment, hubToken } = await import('../../files/io/hub/node/environment.js')
    const { endpoint = hubEnvironment().endpoint, token = await hubToken() } = hubOptions()
    return { endpoint, token, isOffline: hubEnvironment().isOffline }
  },
  watch: watchOnTerminal,
  watchMerge,
  watchDownloads,
  // availableMemory respects the limit of a container. It came with Node 20.13.
  freeMemory: () => process.availableMemory?.() ?? freemem(),
  memoryUse,
  loadRewards: async (file) => (await import('./rewards.js')).loadRewards(localPath(file, 'rewards')),
  openExampleFile,
  defaultRuntime: () => runtimeOf(resolveNodeRuntime()),
  nodeRuntime: (specifier = resolveNodeRuntime()) => runtimeOf(specifier),
}
