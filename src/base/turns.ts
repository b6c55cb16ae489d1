// Actions that run one after another, each once those before it are over.

export class Turns {
  #last: Promise<unknown> = Promise.resolve()

  /** Settles when the last action is over, and never rejects. */
  get idle(): Promise<unknown> {
    return this.#last
  }

  take<T>(action: () => Promise<T>): Promise<T> {
    const result = this.#last.then(action)
    this.#last = result.catch(() => {})
    return result
  }
}

/** Lets what has come to this thread have its turn, such as messages. A timer would wait for milliseconds. */
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
