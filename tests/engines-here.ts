// Runs engines in the tests' thread, which saves starting a thread and ONNX Runtime for each model. Messages are still
// structured clones, as between threads.

import { MessageChannel, type MessagePort } from 'node:worker_threads'
import { nodePlatform } from '../src/api/node/platform.js'
import { usePlatform } from '../src/api/platform/platform.js'
import type { EngineKind } from '../src/onnx/runtime/host.js'
import type { Port } from '../src/onnx/runtime/rpc.js'
import { serveEngine } from '../src/onnx/runtime/serve.js'
import { InferEngine } from '../src/run/engine.js'
import { TrainEngine } from '../src/train/engine/engine.js'

function portOf(port: MessagePort): Port {
  port.unref()
  return {
    post: (message, transfer) => port.postMessage(message, transfer as ArrayBuffer[]),
    listen: (receive) => void port.on('message', receive).unref(),
    hold: (isHeld) => (isHeld ? port.ref() : port.unref()),
    close: async () => port.close(),
  }
}

function spawn(kind: EngineKind): Port {
  const { port1, port2 } = new MessageChannel()
  if (kind === 'train') serveEngine(portOf(port1), (runtime) => new TrainEngine(runtime))
  else serveEngine(portOf(port1), (runtime) => new InferEngine(runtime))
  return portOf(port2)
}

/** Lets engines start in this thread until the returned function is called. */
export function enginesHere(): () => void {
  const here = (host: object) => ({ ...host, spawn }) as ReturnType<typeof nodePlatform.defaultRuntime>
  usePlatform({
    ...nodePlatform,
    defaultRuntime: () => here(nodePlatform.defaultRuntime()),
    nodeRuntime: (specifier) => here(nodePlatform.nodeRuntime(specifier)),
  })
  return () => usePlatform(nodePlatform)
}
