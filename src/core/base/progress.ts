// Progress of tools that take a while, and how to stop them.

import type { SignalLike } from './globals.js'

/** How far a tool has come. */
export interface ToolProgress {
  /** The number of layers or tensors that are done. */
  done: number
  total: number
  /** The layer or tensor that was done last. */
  name: string
}

/** Callbacks of a tool. If one throws an error, the tool stops. */
export interface ToolEvents {
  /** Called after each layer or tensor. */
  progress?(progress: ToolProgress): void
}

/** Options of each tool that takes a while. */
export interface ToolRun {
  /** Callbacks. Default: none. */
  on?: ToolEvents | undefined
  /** Stops the run. Then the signal's reason is thrown, and nothing is written. */
  signal?: SignalLike | undefined
}

const TURN_MS = 20

/** Counts steps, and lets the event loop run from time to time so that a signal can arrive. */
export class Steps {
  #done = 0
  #lastTurn = Date.now()

  constructor(
    private readonly total: number,
    private readonly run: ToolRun,
  ) {}

  /** Call this after each step. Throws the signal's reason if it was aborted. */
  async next(name: string): Promise<void> {
    this.#done++
    this.run.on?.progress?.({ done: this.#done, total: this.total, name })
    if (Date.now() - this.#lastTurn >= TURN_MS) {
      await new Promise((resolve) => setTimeout(resolve, 0))
      this.#lastTurn = Date.now()
    }
    const { signal } = this.run
    if (signal?.aborted) throw signal.reason
  }
}
