// The part of inference that runs: the graphs of a session and the texts that are being written with them. It lives in
// a worker or in the caller's thread. Calls tell it what to write and which adapters there are, and tokens come back.

import { Turns } from '../base/turns.js'
import { transfer } from '../runtime/rpc.js'
import { type Feeds, freeOnGpu, isOnGpu, type Runtime } from '../runtime/runtime.js'
import type { DecoderFiles } from '../text/decoder.js'
import type { Vocabulary } from '../text/vocabulary.js'
import type { Mix } from './adapters/choice.js'
import type { AdapterFactors } from './adapters/site-factors.js'
import type { TextCall, WrittenToken } from './generate/running-text.js'
import { RunningTexts, type TextBounds } from './generate/running-texts.js'
import type { TextForm } from './generate/text-form.js'
import { type Activation, GraphEngine, type OpenRequest } from './graph-engine.js'

export class InferEngine {
  /** Graphs by role. */
  readonly #graphs = new Map<string, GraphEngine>()
  readonly #turns = new Turns()
  #texts: RunningTexts | undefined

  constructor(private readonly runtime: Runtime) {}

  open(role: string, request: OpenRequest): Promise<void> {
    const graph = this.#graphs.get(role) ?? new GraphEngine(this.runtime, this.#turns)
    this.#graphs.set(role, graph)
    return graph.open(request)
  }

  addAdapter(role: string, name: string, factors: AdapterFactors): void {
    this.#graph(role).addAdapter(name, factors)
  }

  removeAdapter(name: string): void {
    for (const graph of this.#graphs.values()) {
      const factors = graph.removeAdapter(name)
      if (factors !== undefined) this.#texts?.tools.prefixes.forget(factors)
    }
  }

  /** @param activation for mixes that count from some token on */
  async run(
    role: string,
    feeds: Feeds,
    mixes: readonly Mix[],
    outputNames: readonly string[] | undefined,
    activation?: Activation,
  ) {
    const graph = this.#graph(role)
    const outputs = await graph.runMixes(feeds, mixes, outputNames, activation)
    if (graph.keepsTensors) return outputs
    for (const [name, tensor] of Object.entries(outputs)) {
      if (!isOnGpu(tensor)) continue
      outputs[name] = await graph.toHost(tensor)
      freeOnGpu(tensor)
    }
    return transfer(outputs, [...new Set(Object.values(outputs).map(({ data }) => data.buffer))])
  }

  /** Roles of graphs that have failed, and of which no run has succeeded since they were opened. */
  failing(): string[] {
    return [...this.#graphs].flatMap(([role, { hasFailed }]) => (hasFailed ? [role] : []))
  }

  /** Before the first text. */
  openTexts(form: TextForm, bounds: TextBounds): void {
    this.#texts = new RunningTexts(form, (role) => this.#graph(role), bounds)
  }

  /** Before the first schema. */
  async setVocabulary(vocabulary: Vocabulary): Promise<void> {
    const { Grammars } = await import('./generate/grammars.js')
    this.#texts!.tools.grammars = new Grammars(vocabulary)
  }

  /** Before the first text with stop strings. */
  async setDecoder(files: DecoderFiles): Promise<void> {
    this.#texts!.tools.decoder = (await import('../text/decoder.js')).TokenDecoder.open(files)
  }

  async prepareSchema(schema: string): Promise<void> {
    await this.#texts!.tools.grammars!.compile(schema)
  }

  /**
   * Writes the texts of a call, and returns when all have ended.
   *
   * @param id by which the caller can {@link leave}
   */
  write(id: number, call: TextCall, report: (tokens: readonly WrittenToken[]) => void): Promise<void> {
    return this.#texts!.write(id, call, report)
  }

  /** The caller wants no more of these texts. */
  leave(id: number): void {
    this.#texts?.leave(id)
  }

  dispose(): Promise<void> {
    return this.#turns.take(async () => {
      this.#texts?.tools.prefixes.clear()
      for (const graph of this.#graphs.values()) await graph.dispose()
    })
  }

  #graph(role: string): GraphEngine {
    return this.#graphs.get(role)!
  }
}
