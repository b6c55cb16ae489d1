// Finds the user's onnxruntime-node.

import { RuntimeError } from '../../../core/base/errors.js'
import { resolvePeer } from '../../../core/base/node/peers.js'
import { loadRuntime } from '../load.js'
import type { Runtime } from '../runtime.js'

export function resolveNodeRuntime(): string {
  const found = resolvePeer('onnxruntime-node', import.meta.url)
  if (found !== undefined) return found
  throw new RuntimeError({
    where: 'onnxruntime-node',
    what: 'it is not installed',
    hint:
      'Run `npm install onnxruntime-node` in your project, or with --global beside a lowrank that is installed so. ' +
      'ONNXRUNTIME_NODE_INSTALL=skip in front of it leaves out CUDA libraries that the CPU does not need, on x64 Linux',
  })
}

/** Loads onnxruntime-node in this thread. Each run then blocks the thread. */
export function loadNodeRuntime(): Promise<Runtime> {
  return loadRuntime(resolveNodeRuntime())
}
