// Makes the feeds of a decoder that reads vectors instead of tokens. The model's embedding graph makes the vectors; the
// vectors of pictures replace those of their placeholder tokens. Some models also place pictures on a grid of
// positions.

import { f32ToF16 } from '../../core/base/dtype.js'
import { MismatchError } from '../../core/base/errors.js'
import { roleFeeds } from '../../model/inputs/roles.js'
import { VECTORS } from '../../model/inputs/tokens.js'
import { gridPositions } from '../../model/pictures/picture-places.js'
import { type Feeds, floatsOf, type RuntimeTensor, type TensorType } from '../../onnx/runtime/runtime.js'
import { type AdapterFeeds, feedsOfRows, type RowFactors } from '../adapters/row-factors.js'
import type { GraphEngine } from '../graph-engine.js'
import type { RunningText } from './running-text.js'
import type { EmbeddingForm, Padding } from './text-form.js'

interface Row {
  readonly text: RunningText
  readonly mix: RowFactors[number]
  /** The positions of all prompt tokens (3, length), if pictures lie on a grid. `after` is the position after them. */
  readonly positions: readonly (readonly number[])[] | undefined
  after: number
}

export class TokenVectors {
  #rows: Row[]
  #adapters: AdapterFeeds
  #isFirst = true

  constructor(
    private readonly form: EmbeddingForm,
    private readonly graph: GraphEngine,
    texts: readonly RunningText[],
    private readonly padding: Padding,
  ) {
    const hasGrids = form.takesPositions && texts.some(({ request: { pictures } }) => pictures?.grids.length)
    const mixes = graph.factorsOf(texts.map(({ request }) => request.mix))
    this.#adapters = feedsOfRows(mixes)
    this.#rows = texts.map((text, i) => {
      const { tokens, request } = text
      const positions = hasGrids ? gridPositions(tokens, request.pictures) : undefined
      const after = positions === undefined ? 0 : Math.max(...positions.map((axis) => Math.max(...axis))) + 1
      return { text, mix: mixes[i], positions, after }
    })
  }

  drop(texts: readonly RunningText[]): void {
    this.#rows = this.#rows.filter(({ text }) => !texts.includes(text))
    this.#adapters = feedsOfRows(this.#rows.map(({ mix }) => mix))
  }

  async feeds(): Promise<Feeds> {
    const rows = this.#rows
    const fed = rows.map(({ text: { tokens } }) => (this.#isFirst ? tokens : tokens.slice(-1)))
    const [batch, sequence] = [rows.length, Math.max(...fed.map(({ length }) => length))]
    const starts = fed.map(({ length }) => (this.padding === 'left' ? sequence - length : 0))
    const { roles, padTokenId, fed: inputs } = this.form
    const inputIds = new Int32Array(batch * sequence).fill(padTokenId)
    for (const [row, { text }] of rows.entries()) {
      // The embedding may have no row for the placeholder token of pictures.
      const ids = fed[row].map((id) => (id === text.request.pictures?.token && this.#isFirst ? padTokenId : id))
      inputIds.set(ids, row * sequence + starts[row])
    }
    const attentionMask = new Uint8Array(batch * sequence).fill(1)
    const feeds = roleFeeds(roles, { batch, sequence, inputIds, attentionMask })
    const outputs = await this.graph.run(feeds, this.#adapters, undefined)
    const plain = outputs[VECTORS] ?? Object.values(outputs)[0]
    const vectors = this.#isFirst ? this.#withPictures(plain, starts) : plain
    const positions = this.#positions(sequence, starts)
    this.#isFirst = false
    const values = (name: string) => (name === VECTORS ? vectors : outputs[name])
    return { ...Object.fromEntries(inputs.map(({ name, type }) => [name, typed(values(name), type)])), ...positions }
  }

  #withPictures(vectors: RuntimeTensor, starts: readonly number[]): RuntimeTensor {
    if (this.#rows.every(({ text }) => text.request.pictures === undefined)) return vectors
    const [, sequence, width] = vectors.dims
    const data = floatsOf(vectors).slice()
    for (const [row, { text }] of this.#rows.entries()) {
      const { pictures } = text.request
      if (pictures === undefined) continue
      if (pictures.width !== width) {
        throw new MismatchError({
          where: 'vision_encoder',
          what: 'its vectors do not have the width of token vectors',
          expected: `${width}`,
          got: `${pictures.width}`,
        })
      }
      let from = 0
      for (const [i, id] of text.tokens.entries()) {
        if (id !== pictures.token) continue
        data.set(pictures.data.subarray(from, from + width), (row * sequence + starts[row] + i) * width)
        from += width
      }
    }
    return { type: 'float32', data, dims: vectors.dims }
  }

  /** Makes positions (3, batch, sequence), or no feed if positions simply count tokens. */
  #positions(sequence: number, starts: readonly number[]): Feeds {
    const rows = this.#rows
    if (rows[0].positions === undefined) return {}
    const [axes, batch] = [3, rows.length]
    const data = new BigInt64Array(axes * batch * sequence)
    for (const [i, row] of rows.entries()) {
      for (let axis = 0; axis < axes; axis++) {
        const places = this.#isFirst ? row.positions![axis] : [row.after]
        data.set(places.map(BigInt), (axis * batch + i) * sequence + starts[i])
      }
      if (!this.#isFirst) row.after++
    }
    return { position_ids: { type: 'int64', data, dims: [axes, batch, sequence] } }
  }
}

function typed(vectors: RuntimeTensor, type: TensorType): RuntimeTensor {
  if (type === vectors.type) return vectors
  const data = floatsOf(vectors)
  if (type === 'float16') return { type: 'float16', data: f32ToF16(data), dims: vectors.dims }
  return { type: 'float32', data, dims: vectors.dims }
}
