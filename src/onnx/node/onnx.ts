// `lowrank/onnx` in Node, Bun and Deno: graphs can be paths, and onnxruntime-node is found.

import { open, readFile } from 'node:fs/promises'
import { dirname, join, relative, resolve } from 'node:path'
import { FileError, FormatError, messageOf } from '../../core/base/errors.js'
import { differentiate, type GradientGraph, type GradientOptions, type GraphFile } from '../differentiate.js'
import { weightRange } from '../format/tensors.js'
import { checkGradients } from '../onnx.js'
import { loadNodeRuntime } from '../runtime/node/runtime.js'
import { runtimeOf } from '../runtime/onnxruntime.js'

export * from '../onnx.js'

/** Does what `gradients` of `../onnx.js` does, and also takes a path. */
export async function gradients(graph: Uint8Array | string, options: GradientOptions): Promise<GradientGraph> {
  checkGradients(graph, options)
  const file = typeof graph === 'string' ? await readGraphFile(graph) : { name: 'graph', bytes: graph }
  const runtime = options.runtime === undefined ? await loadNodeRuntime() : runtimeOf(options.runtime)
  return differentiate(file, options, runtime)
}

async function readGraphFile(path: string): Promise<GraphFile> {
  const folder = dirname(resolve(path))
  return {
    name: path,
    folder,
    bytes: await withErrors(path, () => readFile(path)),
    async readExternal(tensor) {
      const { location, offset, byteLength } = weightRange(tensor, path)
      // A graph must not reach outside of its folder: https://onnx.ai/onnx/repo-docs/ExternalData.html
      if (relative(folder, join(folder, location)).startsWith('..')) {
        throw new FormatError({ where: path, what: 'it keeps weights outside of its folder', got: location })
      }
      const bytes = new Uint8Array(byteLength)
      const file = await withErrors(location, () => open(join(folder, location)))
      try {
        const { bytesRead } = await withErrors(location, () => file.read(bytes, 0, byteLength, offset))
        if (bytesRead === byteLength) return bytes
        throw new FormatError({ where: location, what: `it ends before the weight ${tensor.name}` })
      } finally {
        await file.close()
      }
    },
  }
}

async function withErrors<T>(where: string, action: () => Promise<T>): Promise<T> {
  try {
    return await action()
  } catch (cause) {
    throw new FileError({ where, what: `cannot be read: ${messageOf(cause)}`, cause })
  }
}
