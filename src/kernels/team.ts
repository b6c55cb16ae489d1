// Worker threads that compute blocks of a product while the calling thread, which also feeds them, computes others. The
// caller blocks in Atomics.wait, as Node allows on its main thread: so a synchronous product can use several cores.

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
/** Places in the i32 of the memory: workers sleep on bells. The slots' states begin at 0. */
const BELLS = 64
const ALIVE = 96

/** Slot 0 is the caller's. */
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

/** The script of a worker: a string, so that it needs no file of its own in anyone's bundle. */
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

export class Team {
  readonly #states: Int32Array
  readonly #workers: Worker[] = []
  readonly #blocks: number[]

  /**
   * Starts `threads` − 1 workers over a shared workspace with their slots. They help as soon as they are there.
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
        // Nothing of the caller's: a loader that it was started with could wait for the very thread that waits here.
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
