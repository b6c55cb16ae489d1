// Soft targets: how likely another model found the tokens at a place of its answer. They take the place of the token
// that it chose, if the token's bytes are those of a token of ours: both models then choose among continuations of the
// same text. Elsewhere, the text's own token is the target.

import { isObject } from '../../core/base/options.js'
import { requireTokenizer, type TextModel } from '../../model/model-folder.js'
import { ExampleStore } from '../../model/text/example-store.js'
import { type Example, IGNORED } from '../../model/text/records.js'
import type { Tokenizer } from '../../model/text/tokenizer.js'
import { BYTE_LETTERS, type Vocabulary } from '../../model/text/vocabulary.js'
import { DataType } from '../../onnx/format/tensors.js'
import type { Feeds } from '../../onnx/runtime/runtime.js'
import type { Value } from '../../onnx/view/builder.js'
import type { ObjectiveGraph } from '../graph/objective-graph.js'
import { ownLength } from '../tasks/token-probe.js'

/** Entries in the order of their positions. The shares of a position add up to 1, and one of them is its label's. */
export interface SoftTargets {
  /** Indices of `inputIds`. */
  readonly positions: Int32Array
  readonly tokens: Int32Array
  readonly shares: Float32Array
}

export interface SoftExample extends Example {
  readonly soft?: SoftTargets
}

/** An evaluation counts the texts alone. */
export const hasSoft = (examples: unknown) => examples instanceof ExampleStore && examples.has('soft')

/**
 * @param logprobs of the last answer: `content` has its tokens, each with `bytes`, `logprob` and `top_logprobs`
 * @returns undefined if no place has two tokens of ours to choose from
 */
export function softTargetsOf(logprobs: object, { inputIds, labels }: Example, model: TextModel) {
  const { content } = logprobs as { content?: unknown }
  const bytes = bytesOf(requireTokenizer(model), model.vocabularySize)
  if (!Array.isArray(content) || !content.every(isObject) || bytes === undefined) return undefined
  const theirs = content.map(bytesOfEntry)
  const places = [...labels.keys()].filter((i) => i > 0 && labels[i] !== IGNORED)
  const ours = places.map((i) => bytes.ofTokens[inputIds[i]] ?? '')
  let at = ours.join('').lastIndexOf(theirs.join(''))
  if (at < 0) return undefined
  const starts = new Map<number, number>()
  for (const [i, text] of theirs.entries()) {
    starts.set(at, i)
    at += text.length
  }
  const entries: [position: number, token: number, share: number][] = []
  let offset = 0
  for (const [i, position] of places.entries()) {
    const index = ours[i] === '' ? undefined : starts.get(offset)
    offset += ours[i].length
    if (index === undefined || theirs[index] !== ours[i]) continue
    const { logprob, top_logprobs: top } = content[index]
    const found = new Map([[inputIds[position], Math.exp(Number(logprob))]])
    for (const other of Array.isArray(top) ? top.filter(isObject) : []) {
      const id = bytes.ids.get(bytesOfEntry(other))
      if (id !== undefined && bytesOfEntry(other) !== ours[i]) found.set(id, Math.exp(Number(other.logprob)))
    }
    const total = [...found.values()].reduce((sum, share) => sum + share, 0)
    if (found.size > 1 && total > 0) for (const [id, share] of found) entries.push([position, id, share / total])
  }
  if (entries.length === 0) return undefined
  const [positions, tokens, shares] = [0, 1, 2].map((part) => entries.map((entry) => entry[part]))
  return { positions: Int32Array.from(positions), tokens: Int32Array.from(tokens), shares: Float32Array.from(shares) }
}

const binary = (bytes: Iterable<number>) => Array.from(bytes, (byte) => String.fromCharCode(byte)).join('')
const utf8 = (text: string) => binary(new TextEncoder().encode(text))

function bytesOfEntry({ token, bytes }: Readonly<Record<string, unknown>>): string {
  return Array.isArray(bytes) ? binary(bytes as number[]) : utf8(String(token))
}

interface TokenBytes {
  /** A character for each byte; empty for special tokens. */
  readonly ofTokens: readonly string[]
  readonly ids: ReadonlyMap<string, number>
}

const known = new WeakMap<Tokenizer, TokenBytes | undefined>()

function bytesOf(tokenizer: Tokenizer, size = 0): TokenBytes | undefined {
  if (known.has(tokenizer)) return known.get(tokenizer)
  const vocabulary = tokenizer.vocabulary(size)
  const ofTokens = vocabulary && inBytes(vocabulary)
  // Of tokens with the same bytes the last one counts, which is the letter and not <0x41>.
  const ids = ofTokens && new Map(ofTokens.flatMap((bytes, id) => (bytes === '' ? [] : [[bytes, id] as const])))
  const found = ofTokens && { ofTokens, ids: ids! }
  known.set(tokenizer, found)
  return found
}

function inBytes({ spelling, tokens }: Vocabulary): string[] {
  if (spelling === 'byte_fallback') {
    return tokens.map((token) => {
      const [, byte] = /^<0x([0-9A-F]{2})>$/.exec(token) ?? []
      return byte === undefined ? utf8(token.replaceAll('▁', ' ')) : binary([Number.parseInt(byte, 16)])
    })
  }
  return tokens.map((token) => token.replace(/[\u0100-\u0143]/g, (letter) => binary([BYTE_LETTERS.indexOf(letter)])))
}

/** Graph inputs: [row, token], int64 (n, 2), and what each token's logit adds to the loss, float (n). */
const PAIRS = 'loss/soft/pairs'
const CHANGES = 'loss/soft/changes'
const PROBED = [6, 17] as const

export const softLength = () => ownLength('soft targets', PROBED, { input: CHANGES, axis: 0 })

export function probeSoft(i: number): Feeds {
  return feedsOf(Array.from({ length: PROBED[i] }, () => [0, 0, 0]))
}

/**
 * −Σ share·ln p[token] is the cross-entropy −ln p[label] plus (logit[label] − Σ share·logit[token]), since the shares
 * of a row add up to 1.
 */
export function softLoss(graph: ObjectiveGraph, logits: Value, loss: Value): Value {
  const { g } = graph
  const pairs = graph.input(PAIRS, DataType.INT64, ['soft targets', 2])
  const changes = graph.input(CHANGES, DataType.FLOAT, ['soft targets'])
  return g.add(loss, g.reduceSum(g.mul(g.op('GatherND', [logits, pairs]), changes), [0], 0))
}

/** The rows are the targets of all examples, in order. */
export function softFeeds(examples: readonly SoftExample[]): Feeds {
  // An empty tensor is no input for every device.
  const entries: [row: number, token: number, change: number][] = [[0, 0, 0]]
  let row = 0
  for (const { labels, soft } of examples) {
    let entry = 0
    for (let i = 1; i < labels.length; i++) {
      if (labels[i] === IGNORED) continue
      for (; soft?.positions[entry] === i; entry++) {
        const token = soft.tokens[entry]
        entries.push([row, token, Number(token === labels[i]) - soft.shares[entry]])
      }
      row++
    }
  }
  return feedsOf(entries)
}

function feedsOf(entries: readonly (readonly [row: number, token: number, change: number])[]): Feeds {
  const pairs = BigInt64Array.from(entries.flatMap(([row, token]) => [BigInt(row), BigInt(token)]))
  const changes = Float32Array.from(entries, ([, , change]) => change)
  return {
    [PAIRS]: { type: 'int64', data: pairs, dims: [entries.length, 2] },
    [CHANGES]: { type: 'float32', data: changes, dims: [entries.length] },
  }
}
