// Finds the user's onnxruntime-node.

import { createRequire } from 'node:module'
import { join } from 'node:path'
import { pathToFileURL } from 'node:url'
import { RuntimeError } from '../../base/errors.js'
import { loadRuntime } from '../load.js'
import type { Runtime } from '../runtime.js'

/**
 * The URL of onnxruntime-node, as the program that runs sees it, else as this package sees it. The working directory is
 * no place to load code from, for it may be a downloaded model's folder. It counts only where Node itself looks there:
 * for a program without a file.
 *
 * @throws RuntimeError when it is not installed.
 */
export function resolveNodeRuntime(): string {
  const program = process.argv[1] ?? join(process.cwd(), 'package.json')
  for (const from of [program, import.meta.url]) {
    try {
      return pathToFileURL(createRequire(from).resolve('onnxruntime-node')).href
    } catch {
      // Not seen from here: the next place may have it.
    }
  }
  throw new RuntimeError({
    where: 'onnxruntime-node',
    what: 'it is not installed',
    hint:
      'Run `npm install onnxruntime-node` in your project, or with --global beside a lowrank that is installed so. ' +
      'ONNXRUNTIME_NODE_INSTALL=skip in front of it leaves out CUDA libraries that the CPU does not need, on x64 Linux',
  })
}

/** onnxruntime-node in this thread: each run blocks it. */
export function loadNodeRuntime(): Promise<Runtime> {
  return loadRuntime(resolveNodeRuntime())
}
