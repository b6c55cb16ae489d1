// The texts of a session that are being written. Calls share steps: a text joins the others once its prompt is read,
// and leaves when it ends. Groups of texts of similar length take turns, and so do texts whose graph cannot be shared.

import { deserializeError, UnsupportedError } from '../../base/errors.js'
import type { SignalLike } from '../../base/globals.js'
import type { NewRows } from '../../graph/fuse/new-rows.js'
import type { Feeds } from '../../runtime/runtime.js'
import type { Mix } from '../adapters/choice.js'
import type { WholeSession } from '../graphs.js'
import type { NextToken, RowRequest } from './decoding.js'
import type { TextGraph } from './text-graph.js'
import type { TokenVectors } from './token-vectors.js'

export interface TextBounds {
  readonly maxBatch: number
  /** Bytes of the caches of all of them at their ends. A text that needs more runs alone. */
  readonly cacheBytes: number
  /** Bytes of the caches of texts that have ended, for those that begin alike. */
  readonly prefixCache: number
}

export const TEXT_BOUNDS: TextBounds = Object.freeze({ maxBatch: 8, cacheBytes: 2 ** 30, prefixCache: 2 ** 28 })

export interface RunningText {
  readonly request: Omit<RowRequest, 'id'>
  readonly mix: Mix
  readonly mostTokens: number
  take(token: NextToken): boolean
  fail(error: unknown): void
}

export interface TextJob {
  readonly texts: readonly RunningText[]
  /** Gives what the graph reads beside tokens. Texts with it share steps with each other alone. */
  readonly prepare?: (
    ids: readonly number[],
  ) => Promise<{ context?: Feeds | undefined; vectors?: TokenVectors | undefined }>
}

export interface TextCall {
  readonly graph: TextGraph
  readonly batchSize: number
  readonly signal: SignalLike | undefined
  readonly jobs: readonly TextJob[]
}

interface OpenCall extends Omit<TextCall, 'jobs'> {
  readonly jobs: TextJob[]
  running: number
  hasLeft: boolean
}

interface Start {
  readonly text: RunningText
  readonly call: OpenCall
}

interface Member extends Start {
  readonly id: number
  length: number
}

interface Group {
  readonly graph: TextGraph
  readonly members: Map<number, Member>
  readonly prepare: TextJob['prepare']
  decoding: number | undefined
  vectors: TokenVectors | undefined
  ended: number[]
  isRead: boolean
}

/** Tokens of prompts that are read in one run while other texts wait for their next token. */
const PIECE = 256

/**
 * Tokens that are read in one run where no text waits. In a run, attention computes the scores of all keys for each
 * token, also of those behind it. With 9 heads, 4,000 tokens at once have 0.6 GB of scores, and half are for nothing.
 */
const LONG_PIECE = 512

/** Tokens of a prompt that may be read together with others. A longer one is alone: it may begin like one before. */
const SHORT = 64

/**
 * How many times as long as a byte of the weights takes one that fills a row up. Attention that knows the keys of each
 * row does not read it, but ONNX Runtime clears it in each step; a further group reads the weights once more.
 */
const CLEARING = 3

export class RunningTexts {
  readonly #calls: OpenCall[] = []
  #groups: Group[] = []
  #isRunning = false
  /** Texts in groups, and bytes of their caches at their ends. */
  #running = 0
  #bytes = 0
  /** False once the graph could not tell adapters of rows apart. */
  #mixesShare = true
  #nextId = 1

  constructor(
    private readonly session: Pick<WholeSession, 'engine' | 'tried'> & { readonly newRows?: NewRows | undefined },
    readonly bounds: TextBounds,
  ) {}

  add(call: TextCall): { leave(): void } {
    const open: OpenCall = { ...call, jobs: [...call.jobs], running: 0, hasLeft: false }
    this.#calls.push(open)
    if (!this.#isRunning) void this.#run()
    return {
      leave() {
        open.hasLeft = true
      },
    }
  }

  async #run(): Promise<void> {
    this.#isRunning = true
    for (;;) {
      await this.#letLeave()
      this.#admit()
      if (this.#groups.length === 0) break
      for (const group of [...this.#groups]) await this.#step(group)
      await this.#join()
    }
    this.#isRunning = false
  }

  async #letLeave(): Promise<void> {
    for (const call of [...this.#calls]) {
      const { signal } = call
      if (!call.hasLeft && !signal?.aborted) continue
      for (const { texts } of call.jobs.splice(0)) for (const text of texts) text.fail(signal?.reason)
      for (const group of this.#groups) {
        const ended = [...group.members.values()].filter((member) => member.call === call)
        for (const { id, text } of ended) {
          text.fail(signal?.reason)
          this.#end(group, id)
        }
        const ids = ended.map(({ id }) => id)
        group.vectors?.push([], ids)
      }
      this.#calls.splice(this.#calls.indexOf(call), 1)
    }
    for (const group of [...this.#groups]) await this.#closeIfEmpty(group)
  }

  /** Starts jobs that fit, first those of the calls of which the fewest texts run. */
  #admit(): void {
    const shared: Start[] = []
    for (;;) {
      const waiting = this.#calls.filter(({ jobs: [job], running, batchSize }) => {
        return job !== undefined && (running === 0 || running + job.texts.length <= batchSize)
      })
      const [call] = waiting.sort((a, b) => a.running - b.running)
      if (call === undefined || !this.#fits(call)) break
      const { texts, prepare } = call.jobs.shift()!
      const starts = texts.map((text) => ({ text, call }))
      call.running += texts.length
      this.#running += texts.length
      this.#bytes += bytesOf(call.graph, texts)
      if (prepare === undefined) shared.push(...starts)
      else this.#open(starts, prepare)
    }
    shared.sort((a, b) => lengthOf(a) - lengthOf(b))
    while (shared.length > 0) {
      const [first] = shared
      const together: Start[] = []
      for (const one of shared) {
        const isAlone = one.text.request.baseTokens > 0 || first.text.request.baseTokens > 0
        const isShort = lengthOf(one) <= SHORT && (together.length + 1) * lengthOf(one) <= PIECE
        const fits = !isAlone && isShort && isSimilar(lengthOf(first), lengthOf(one))
        if (one === first || (fits && (this.#mixesShare || mixOf(first) === mixOf(one)))) together.push(one)
      }
      for (const one of together) shared.splice(shared.indexOf(one), 1)
      this.#open(together)
    }
  }

  #fits({ jobs: [{ texts }], graph, batchSize }: OpenCall): boolean {
    if (this.#running === 0) return true
    const { maxBatch, cacheBytes } = this.bounds
    const isRoom = this.#running + texts.length <= Math.max(maxBatch, batchSize)
    return isRoom && this.#bytes + bytesOf(graph, texts) <= cacheBytes
  }

  #open(starts: readonly Start[], prepare?: TextJob['prepare']): void {
    const members = new Map(
      starts.map(({ text, call }) => {
        const id = this.#nextId++
        return [id, { id, text, call, length: text.request.promptIds.length }]
      }),
    )
    const { graph } = starts[0].call
    this.#groups.push({ graph, members, prepare, decoding: undefined, vectors: undefined, ended: [], isRead: false })
  }

  async #step(group: Group): Promise<void> {
    const most = group.graph.takesPieces ? (this.#groups.length > 1 ? PIECE : LONG_PIECE) : undefined
    try {
      const tokens = await (group.decoding === undefined ? this.#begin(group, most) : this.#next(group, most))
      group.isRead ||= tokens.length > 0
      const ended: number[] = []
      for (const token of tokens) {
        const member = group.members.get(token.row)
        if (member === undefined) continue
        member.length++
        if (token.failure !== undefined) member.text.fail(deserializeError(token.failure))
        else if (member.text.take(token)) continue
        ended.push(token.row)
      }
      for (const id of ended) this.#end(group, id)
      group.vectors?.push(tokens, ended)
    } catch (error) {
      await this.#fail(group, error)
    }
    await this.#closeIfEmpty(group)
  }

  #next(group: Group, most: number | undefined): Promise<NextToken[]> {
    const ended = group.ended.splice(0)
    const { vectors, decoding } = group
    const next = async (given?: Feeds) => this.session.engine.nextTokens(decoding!, ended, given, most)
    return vectors === undefined ? next() : vectors.feeds().then(next)
  }

  async #begin(group: Group, most: number | undefined): Promise<NextToken[]> {
    const { members, prepare, graph } = group
    const { inputs, logits, padding } = graph
    const { context, vectors } = (await prepare?.([...members.keys()])) ?? {}
    const given = await vectors?.feeds()
    group.vectors = vectors
    const all = [...members.values()]
    return this.session.tried(async () => {
      const { engine } = this.session
      if (group.decoding !== undefined) await engine.stopDecoding(group.decoding)
      const { roles, cache } = inputs
      const rows = all.map(({ id, text }) => ({ ...text.request, id }))
      const mixes = all.map(({ text }) => text.mix)
      const request = { rows, logits, roles, cache, padding, context }
      const prefixBytes = graph.takesPieces ? this.bounds.prefixCache : 0
      group.decoding = await engine.startDecoding(request, mixes, prefixBytes)
      return engine.nextTokens(group.decoding, [], given, most)
    })
  }

  /** Ends the texts of a group with an error. Those of which the graph cannot tell the adapters apart go on alone. */
  async #fail(group: Group, error: unknown): Promise<void> {
    const { members, prepare, isRead } = group
    const isMixed = new Set(Array.from(members.values(), mixOf)).size > 1
    if (prepare === undefined && members.size > 1 && (!isRead || (isMixed && error instanceof UnsupportedError))) {
      if (error instanceof UnsupportedError) this.#mixesShare = false
      // One whose prompt is not read begins again, so that it alone fails if it is to blame.
      const decodings = isRead ? await this.session.engine.splitDecoding(group.decoding!, group.ended) : undefined
      for (const [id, member] of members) {
        this.#groups.push({ ...group, members: new Map([[id, member]]), decoding: decodings?.get(id), ended: [] })
      }
      members.clear()
      return
    }
    for (const { id, text } of [...members.values()]) {
      text.fail(this.#closed() ?? error)
      this.#end(group, id)
    }
  }

  /** The error of a session that is closed, which says more than that of its engine. */
  #closed(): unknown {
    try {
      void this.session.engine
    } catch (error) {
      return error
    }
  }

  #end(group: Group, id: number): void {
    const { call, text } = group.members.get(id)!
    group.members.delete(id)
    group.ended.push(id)
    call.running--
    this.#running--
    this.#bytes -= bytesOf(group.graph, [text])
  }

  async #closeIfEmpty(group: Group): Promise<void> {
    if (group.members.size > 0) return
    this.#groups = this.#groups.filter((other) => other !== group)
    if (group.decoding === undefined) return
    try {
      await this.session.engine.stopDecoding(group.decoding)
    } catch {
      // An engine that has ended holds no texts.
    }
  }

  async #join(): Promise<void> {
    const ready = this.#groups.filter(({ isRead, prepare }) => isRead && prepare === undefined)
    for (const [i, group] of ready.entries()) {
      for (const other of ready.slice(i + 1)) {
        if ([group, other].some(({ members }) => members.size === 0) || !this.#mayJoin(group, other)) continue
        const ended = [...group.ended, ...other.ended]
        try {
          if (!(await this.session.engine.joinDecodings(group.decoding!, other.decoding!, ended))) {
            this.#mixesShare = false
            continue
          }
        } catch (error) {
          await this.#fail(group, error)
          await this.#fail(other, error)
          return
        }
        group.ended = []
        for (const [id, member] of other.members) group.members.set(id, member)
        other.members.clear()
        this.#groups = this.#groups.filter((one) => one !== other)
      }
    }
  }

  #mayJoin(a: Group, b: Group): boolean {
    const members = [...a.members.values(), ...b.members.values()]
    const lengths = members.map(({ length }) => length)
    const isOne = this.#mixesShare || new Set(members.map(mixOf)).size === 1
    const [shortest, longest] = [Math.min(...lengths), Math.max(...lengths)]
    const { padding, tokenBytes, weightBytes } = a.graph
    const filled = lengths.reduce((sum, length) => sum + longest - length, 0) * tokenBytes
    const skips = padding === 'right' || this.session.newRows?.takesMissing === true
    return isOne && (isSimilar(shortest, longest) || (skips && CLEARING * filled < weightBytes))
  }
}

/** True if texts of these lengths share a batch: each key that only fills a row up costs time. */
function isSimilar(shorter: number, longer: number): boolean {
  return longer <= 2 * shorter || longer - shorter <= PIECE
}

function lengthOf({ text }: Start): number {
  return text.request.promptIds.length
}

function mixOf({ text }: Start): string {
  return JSON.stringify(text.mix)
}

function bytesOf({ tokenBytes }: TextGraph, texts: readonly RunningText[]): number {
  return texts.reduce((sum, { request, mostTokens }) => sum + (request.promptIds.length + mostTokens) * tokenBytes, 0)
}
