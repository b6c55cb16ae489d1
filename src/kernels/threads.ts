// Worker threads that compute blocks of a product. The calling thread feeds them and computes blocks too, and then
// blocks in Atomics.wait, which Node allows on its main thread. So a synchronous product can use several cores.

import type { Workspace } from './workspace.js'

/** Blocks of a product: `prepare` copies a block's operands into a slot, `finish` takes its result out again. */
export interface BlockTask {
  count: number
  prepare(slot: number, block: number): void
  finish(slot: number, block: number): void
}

/** States of a slot. A worker, or the caller when it has nothing else to do, turns READY into RUNNING. */
const EMPTY = 0
const READY = 1
const RUNNING = 2
const DONE = 3
const FAILED = 4

const SLOTS_PER_WORKER = 2
const MAX_THREADS = 8
/** Indices into the memory as i32. The states of the slots begin at 0, and sleeping workers wait on the bells. */
const BELLS = 64
const ALIVE = 96

/** The calling thread uses slot 0. */
export function slotsFor(threads: number): number {
  return 1 + SLOTS_PER_WORKER * (threads - 1)
}

export function availableThreads(): number {
  if (builtin('worker_threads') === undefined || typeof SharedArrayBuffer === 'undefined') return 1
  try {
    Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 0)
  } catch {
    return 1
  }
  return Math.min(builtin<{ availableParallelism(): number }>('os')?.availableParallelism() ?? 1, MAX_THREADS)
}

interface Worker {
  unref(): void
  terminate(): Promise<number>
}

/** Looked up at run time, so that bundles for browsers hold no trace of Node's modules. */
function builtin<T>(name: string): T | undefined {
  return globalThis.process?.getBuiltinModule?.(name) as T | undefined
}

/** A worker's script. It is a string, so that bundlers need not find and emit another file. */
const WORKER = `
const { module, memory, bell, alive, slots, jobs } = require('worker_threads').workerData
const { multiply } = new WebAssembly.Instance(module, { env: { memory } }).exports
const states = new Int32Array(memory.buffer)
Atomics.store(states, alive, 1)
for (;;) {
  const rung = Atomics.load(states, bell)
  let found = false
  for (let i = 0; i < slots.length; i++) {
    if (Atomics.compareExchange(states, slots[i], ${READY}, ${RUNNING}) !== ${READY}) continue
    found = true
    let state = ${FAILED}
    try {
      multiply(jobs[i])
      state = ${DONE}
    } finally {
      Atomics.store(states, slots[i], state)
      Atomics.notify(states, slots[i])
    }
  }
  if (!found) Atomics.wait(states, bell, rung)
}
`

export class KernelThreads {
  readonly #states: Int32Array
  readonly #workers: Worker[] = []
  readonly #blocks: number[]

  /**
   * Starts `threads` − 1 workers over a shared workspace. They take part as soon as they have started.
   *
   * @internal
   */
  constructor(module: WebAssembly.Module, workspace: Workspace, threads: number) {
    this.#states = new Int32Array(workspace.memory.buffer)
    this.#blocks = new Array(slotsFor(threads)).fill(0)
    const { Worker } = builtin<{ Worker: new (source: string, options: object) => Worker }>('worker_threads')!
    for (let w = 0; w < threads - 1; w++) {
      const slots = this.#slotsOf(w)
      const worker = new Worker(WORKER, {
        eval: true,
        // Not the caller's arguments: a loader among them could wait for this thread, which is waiting for the worker.
        execArgv: [],
        env: {},
        workerData: {
          module,
          memory: workspace.memory,
          bell: BELLS + w,
          alive: ALIVE + w,
          slots,
          jobs: slots.map((slot) => workspace.jobOf(slot)),
        },
      })
      // An idle worker must not keep the process alive.
      worker.unref()
      this.#workers.push(worker)
    }
  }

  run(task: BlockTask, compute: (slot: number) => void): void {
    const states = this.#states
    let next = 0
    let outstanding = 0
    const finish = (slot: number): void => {
      task.finish(slot, this.#blocks[slot])
      Atomics.store(states, slot, EMPTY)
      outstanding--
    }
    while (next < task.count || outstanding > 0) {
      for (let turn = 0; turn < SLOTS_PER_WORKER; turn++) {
        for (let w = 0; w < this.#workers.length; w++) {
          const slot = this.#slotsOf(w)[turn]
          const state = Atomics.load(states, slot)
          if (state === FAILED) compute(slot)
          if (state === FAILED || state === DONE) finish(slot)
          else if (state !== EMPTY) continue
          if (next >= task.count || Atomics.load(states, ALIVE + w) === 0) continue
          task.prepare(slot, next)
          this.#blocks[slot] = next++
          outstanding++
          Atomics.store(states, slot, READY)
          Atomics.add(states, BELLS + w, 1)
          Atomics.notify(states, BELLS + w)
        }
      }
      if (next < task.count) {
        task.prepare(0, next)
        compute(0)
        task.finish(0, next++)
      } else if (outstanding > 0) this.#help(compute, finish)
    }
  }

  dispose(): void {
    for (const worker of this.#workers.splice(0)) void worker.terminate()
  }

  #help(compute: (slot: number) => void, finish: (slot: number) => void): void {
    const states = this.#states
    for (let slot = this.#blocks.length - 1; slot > 0; slot--) {
      if (Atomics.compareExchange(states, slot, READY, RUNNING) !== READY) continue
      compute(slot)
      finish(slot)
      return
    }
    const running = this.#blocks.findIndex((_, slot) => slot > 0 && Atomics.load(states, slot) === RUNNING)
    if (running > 0) Atomics.wait(states, running, RUNNING)
  }

  #slotsOf(worker: number): number[] {
    return Array.from({ length: SLOTS_PER_WORKER }, (_, i) => 1 + SLOTS_PER_WORKER * worker + i)
  }
}
