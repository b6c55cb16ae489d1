// Finds the cheapest set of edges that separates a source from a sink: Dinic's algorithm (1970).

export const [SOURCE, SINK] = [0, 1]

export class FlowNetwork {
  /** The numbers of an edge and its reverse differ only in the last bit. */
  readonly #edges: number[][] = [[], []]
  readonly #to: number[] = []
  readonly #room: number[] = []

  vertex(): number {
    return this.#edges.push([]) - 1
  }

  edge(from: number, to: number, capacity: number): void {
    this.#edges[from].push(this.#to.length)
    this.#to.push(to)
    this.#room.push(capacity)
    this.#edges[to].push(this.#to.length)
    this.#to.push(from)
    this.#room.push(0)
  }

  /**
   * Returns the sink's side of the smallest cut; if several are equally small, of the one nearest to the sink. Every
   * path needs an edge of finite capacity.
   */
  sinkSide(): Set<number> {
    for (let levels = this.#levels(); levels[SINK] !== -1; levels = this.#levels()) this.#fill(levels)
    const side = new Set([SINK])
    // The loop also visits vertices that it adds.
    for (const vertex of side) {
      for (const edge of this.#edges[vertex]) if (this.#room[edge ^ 1] > 0) side.add(this.#to[edge])
    }
    return side
  }

  /** Distance of each vertex from the source over edges with room; −1 if it cannot be reached. */
  #levels(): Int32Array {
    const levels = new Int32Array(this.#edges.length).fill(-1)
    levels[SOURCE] = 0
    const queue = [SOURCE]
    for (const vertex of queue) {
      for (const edge of this.#edges[vertex]) {
        const to = this.#to[edge]
        if (this.#room[edge] <= 0 || levels[to] !== -1) continue
        levels[to] = levels[vertex] + 1
        queue.push(to)
      }
    }
    return levels
  }

  /** Adds as much flow as possible over edges that lead to the next level. */
  #fill(levels: Int32Array): void {
    const next = new Int32Array(this.#edges.length)
    const path: number[] = []
    let vertex = SOURCE
    for (;;) {
      if (vertex === SINK) {
        const least = Math.min(...path.map((edge) => this.#room[edge]))
        for (const edge of path) {
          this.#room[edge] -= least
          this.#room[edge ^ 1] += least
        }
        path.length = 0
        vertex = SOURCE
        continue
      }
      const edge = this.#edges[vertex][next[vertex]]
      if (edge === undefined) {
        const back = path.pop()
        if (back === undefined) return
        vertex = this.#to[back ^ 1]
        next[vertex]++
      } else if (this.#room[edge] > 0 && levels[this.#to[edge]] === levels[vertex] + 1) {
        path.push(edge)
        vertex = this.#to[edge]
      } else next[vertex]++
    }
  }
}
