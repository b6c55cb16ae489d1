// Runs actions one after another: each starts when the previous action has ended.

export class Turns {
  #last: Promise<unknown> = Promise.resolve()

  /** Resolves when the last action has ended. It never rejects. */
  get idle(): Promise<unknown> {
    return this.#last
  }

  take<T>(action: () => Promise<T>): Promise<T> {
    const result = this.#last.then(action)
    this.#last = result.catch(() => {})
    return result
  }
}

/** Lets waiting events of this thread, such as messages, be handled. A timer would wait for milliseconds. */
export function nextTurn(): Promise<void> {
  return new Promise((resolve) => {
    if (globalThis.setImmediate !== undefined) {
      setImmediate(resolve)
      return
    }
    const { port1, port2 } = new MessageChannel()
    port1.onmessage = () => {
      port1.close()
      resolve()
    }
    port2.postMessage(undefined)
  })
}
