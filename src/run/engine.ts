// The engine of a session runs its graphs and writes texts, in a worker or in the caller's thread.

import { Turns } from '../core/base/turns.js'
import type { DecoderFiles } from '../model/text/decoder.js'
import type { Vocabulary } from '../model/text/vocabulary.js'
import { transfer } from '../onnx/runtime/rpc.js'
import {
  checkOperators,
  type Feeds,
  freeOnGpu,
  isOnGpu,
  type Runtime,
  type SessionOptions,
} from '../onnx/runtime/runtime.js'
import type { Mix } from './adapters/choice.js'
import type { AdapterFactors } from './adapters/site-factors.js'
import type { TextCall, WrittenToken } from './generate/running-text.js'
import { RunningTexts, type TextBounds } from './generate/running-texts.js'
import type { TextForm } from './generate/text-form.js'
import { GraphEngine, type OpenRequest } from './graph-engine.js'

export class InferEngine {
  /** The graphs by their role in the model, such as `decoder` or `vision_encoder`. */
  readonly #graphs = new Map<string, GraphEngine>()
  readonly #turns = new Turns()
  #texts: RunningTexts | undefined

  constructor(private readonly runtime: Runtime) {}

  open(role: string, request: OpenRequest): Promise<void> {
    const graph = this.#graphs.get(role) ?? new GraphEngine(this.runtime, this.#turns)
    this.#graphs.set(role, graph)
    return graph.open(request)
  }

  check(graph: Uint8Array, options: SessionOptions): Promise<void> {
    return checkOperators(this.runtime, graph, options)
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

  async run(role: string, feeds: Feeds, mixes: readonly Mix[], outputNames: readonly string[] | undefined) {
    const graph = this.#graph(role)
    const outputs = await graph.runMixes(feeds, mixes, outputNames)
    if (graph.keepsTensors) return outputs
    for (const [name, tensor] of Object.entries(outputs)) {
      if (!isOnGpu(tensor)) continue
      outputs[name] = await graph.toHost(tensor)
      freeOnGpu(tensor)
    }
    return transfer(outputs, [...new Set(Object.values(outputs).map(({ data }) => data.buffer))])
  }

  /** Returns the roles of graphs that failed in their first run since they were opened. */
  failing(): string[] {
    return [...this.#graphs].flatMap(([role, { hasFailed }]) => (hasFailed ? [role] : []))
  }

  /** Call this before the first text. */
  openTexts(form: TextForm, bounds: TextBounds): void {
    this.#texts = new RunningTexts(form, (role) => this.#graph(role), bounds)
  }

  /** Call this before the first text with a schema. */
  async setVocabulary(vocabulary: Vocabulary): Promise<void> {
    const { Grammars } = await import('./schemas/grammars.js')
    this.#texts!.tools.grammars = new Grammars(vocabulary)
  }

  /** Call this before the first text with stop strings. */
  async setDecoder(files: DecoderFiles): Promise<void> {
    this.#texts!.tools.decoder = (await import('../model/text/decoder.js')).TokenDecoder.open(files)
  }

  async prepareSchema(schema: string): Promise<void> {
    await this.#texts!.tools.grammars!.compile(schema)
  }

  /** Writes the texts of a call, and returns when all have ended. {@link leave} stops them: it takes the same `id`. */
  write(id: number, call: TextCall, report: (tokens: readonly WrittenToken[]) => void): Promise<void> {
    return this.#texts!.write(id, call, report)
  }

  leave(id: number): void {
    this.#texts?.leave(id)
  }

  /** Tokens of the texts that are being written, with their prompts. */
  runningTokens(): number {
    return this.#texts?.tokens ?? 0
  }

  /** Drops the caches that are kept for later texts. */
  forgetPrefixes(): void {
    this.#texts?.tools.prefixes.clear()
  }

  dispose(): Promise<void> {
    return this.#turns.take(async () => {
      this.forgetPrefixes()
      for (const graph of this.#graphs.values()) await graph.dispose()
    })
  }

  #graph(role: string): GraphEngine {
    return this.#graphs.get(role)!
  }
}
