// Helpers for tests of inference and merging: models on disk, random adapters, runs, and a worker in the test's thread.

import { fileURLToPath } from 'node:url'
import { MessageChannel, type MessagePort } from 'node:worker_threads'
import * as ort from 'onnxruntime-node'
import {
  type Feeds,
  LoraAdapter,
  loadModel,
  type Model,
  type OrtModule,
  type RuntimeHost,
  type RuntimeTensor,
} from '../../src/api/node.js'
import { Random } from '../../src/core/base/random.js'
import { NodeDirectory } from '../../src/files/io/node/files.js'
import { tokenInputs } from '../../src/model/inputs/tokens.js'
import { findLinears } from '../../src/model/match/linears.js'
import { resolveNodeRuntime } from '../../src/onnx/runtime/node/runtime.js'
import type { Port } from '../../src/onnx/runtime/rpc.js'
import { serveEngine } from '../../src/onnx/runtime/serve.js'
import { Graph } from '../../src/onnx/view/graph.js'
import { InferEngine } from '../../src/run/engine.js'

const root = fileURLToPath(new URL('../../', import.meta.url))

export const directoryOf = (path: string) => new NodeDirectory(root + path)

/** ONNX Runtime with one thread for each session: several test files run at a time, and idle threads of pools spin. */
export const oneThread: OrtModule = {
  Tensor: ort.Tensor as unknown as OrtModule['Tensor'],
  InferenceSession: {
    create: (model, options) =>
      ort.InferenceSession.create(model, { intraOpNumThreads: 1, ...options }) as unknown as ReturnType<
        OrtModule['InferenceSession']['create']
      >,
  },
  env: ort.env as OrtModule['env'] & object,
}

/** Runs sessions in the test's thread. */
export const inThread: RuntimeHost = { module: oneThread }

/** Makes an ONNX Runtime that records the feeds of runs. It claims to have all providers, but uses the usual one. */
export function recordingRuntime(): { module: OrtModule; fed: Feeds[] } {
  const fed: Feeds[] = []
  const create: OrtModule['InferenceSession']['create'] = async (model, options = {}) => {
    const { executionProviders: _, ...rest } = options
    const session = await oneThread.InferenceSession.create(model, rest)
    return {
      inputNames: session.inputNames,
      outputNames: session.outputNames,
      run: (feeds, names) => {
        fed.push({ ...feeds } as Feeds)
        return session.run(feeds, names)
      },
      release: () => session.release(),
    }
  }
  return { module: { ...oneThread, InferenceSession: { create } }, fed }
}

/**
 * Makes a host whose workers share the test's thread. They get every message as a structured clone, like real workers.
 */
export function messageHost(): { host: RuntimeHost; closed: () => number } {
  let closed = 0
  const portOf = (port: MessagePort): Port => ({
    post: (message, transfer) => port.postMessage(message, transfer as ArrayBuffer[]),
    listen: (receive) => void port.on('message', receive),
    hold: (isHeld) => (isHeld ? port.ref() : port.unref()),
    close: async () => {
      closed++
      port.close()
    },
  })
  return {
    host: {
      specifier: resolveNodeRuntime(),
      spawn() {
        const { port1, port2 } = new MessageChannel()
        serveEngine(portOf(port1), (runtime) => new InferEngine(runtime))
        return portOf(port2)
      },
    },
    closed: () => closed,
  }
}

export const openModel = (path: string, runtime: RuntimeHost = inThread): Promise<Model> =>
  loadModel(directoryOf(path), { runtime })

/** Makes an adapter for the modules whose names match, with nonzero A and B. */
export function makeAdapter(model: Model, modules: RegExp, { seed = 1, rank = 4, alpha = 8, std = 0.05 } = {}) {
  const adapter = new LoraAdapter({ rank, alpha })
  const random = new Random(seed, 'test')
  const matrix = (rows: number, columns: number, deviation: number) => ({
    data: Float32Array.from({ length: rows * columns }, () => random.normal() * deviation),
    shape: [rows, columns] as const,
  })
  const seen = new Set<string>()
  for (const { name, d, k } of findLinears(new Graph(model.onnx.proto))) {
    if (!modules.test(name) || seen.has(name)) continue
    seen.add(name)
    adapter.addFactors(name, matrix(rank, k, 1 / Math.sqrt(k)), matrix(d, rank, std))
  }
  return adapter
}

/** Makes feeds for rows of equal length, with an empty cache. */
export function feedsOf(model: Model, rows: readonly (readonly number[])[]): Feeds {
  const inputs = tokenInputs(new Graph(model.onnx.proto))
  const [batch, sequence] = [rows.length, rows[0].length]
  const attentionMask = new Uint8Array(batch * sequence).fill(1)
  return { ...inputs.feeds({ batch, sequence, inputIds: rows.flat(), attentionMask }), ...inputs.emptyCache(batch) }
}

/** Returns the largest difference of two outputs with the same shape. */
export function maxDifference(a: RuntimeTensor | ArrayLike<number>, b: RuntimeTensor | ArrayLike<number>): number {
  const [x, y] = [a, b].map((value) => ('data' in value ? value.data : value) as ArrayLike<number>)
  if (x.length !== y.length) return Number.POSITIVE_INFINITY
  let max = 0
  for (let i = 0; i < x.length; i++) max = Math.max(max, Math.abs(x[i] - y[i]))
  return max
}

/** Returns the logits of a position, by default the last. */
export function rowOf({ data, dims }: RuntimeTensor, position = dims[1] - 1): Float32Array {
  const vocabulary = dims[2]
  return (data as Float32Array).slice(position * vocabulary, (position + 1) * vocabulary)
}
