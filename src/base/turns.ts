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
