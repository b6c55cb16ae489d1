// Runtimes for sessions: worker threads of Node.

import { checkArgument, NAME } from '../../base/options.js'
import type { RuntimeHost } from '../../runtime/host.js'
import { platform } from './platform.js'

/**
 * A host whose sessions live in Node's worker threads, so that a run leaves this thread free. It is the default there.
 *
 * @param specifier Module specifier or URL of ONNX Runtime. Default: the onnxruntime-node that is installed next to
 *   your program, else next to lowrank.
 * @throws RuntimeError when it is not installed, ConfigError in a browser
 *
 * @example
 * const model = await loadModel('models/union-3m', { runtime: nodeRuntime() })
 * await model.close()
 */
export function nodeRuntime(specifier?: string): RuntimeHost {
  if (specifier !== undefined) checkArgument(specifier, NAME, 'specifier')
  return platform().nodeRuntime(specifier)
}
