// Node, Bun and Deno: strings can be paths, and sessions run in worker threads.

import path from 'node:path'
import type { Platform } from '../index/platform.js'
import type { Located } from '../io/locate.js'
import { locate, NodeDirectory, openFile } from '../io/node/files.js'
import type { EngineKind } from '../runtime/host.js'
import { resolveNodeRuntime } from '../runtime/node/runtime.js'
import { spawnNodeWorker } from '../runtime/node/worker.js'

const WORKERS: Record<EngineKind, URL> = {
  train: new URL('../train/node/worker.js', import.meta.url),
  infer: new URL('../infer/node/worker.js', import.meta.url),
}

const runtimeOf = (specifier: string) => ({ specifier, spawn: (kind: EngineKind) => spawnNodeWorker(WORKERS[kind]) })

export const nodePlatform: Platform = {
  open,
  openData: async (text) => {
    const { directory, file } = await locate(text)
    return file === undefined ? directory : openFile(text)
  },
  target: (text) => new NodeDirectory(text),
  defaultRuntime: () => runtimeOf(resolveNodeRuntime()),
  nodeRuntime: (specifier = resolveNodeRuntime()) => runtimeOf(specifier),
}

async function open(text: string, where: string): Promise<Located> {
  const { openText } = await import('../io/node/open-source.js')
  const { directory, file } = await openText(text, where)
  if (!(directory instanceof NodeDirectory) || file === undefined || !file.endsWith('.onnx')) return { directory, file }
  // The Hub's layout keeps graphs in onnx/, one folder below config.json: the folder of such a graph is the model's.
  const parent = new NodeDirectory(path.join(directory.name, '..'))
  if ((await directory.has('config.json')) || !(await parent.has('config.json'))) return { directory, file }
  return { directory: parent, file: `${path.basename(path.resolve(directory.name))}/${file}` }
}
