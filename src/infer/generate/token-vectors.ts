// Feeds of a decoder that reads vectors in the place of tokens: the vectors by the model's embedding, which is a graph
// of its own, with those of pictures in their places; and the positions of pictures on a grid.

import { f32ToF16 } from '../../base/dtype.js'
import { FileError, MismatchError, UnsupportedError } from '../../base/errors.js'
import { roleFeeds, splitInputs, typeOf } from '../../graph/inputs/roles.js'
import { type TokenInputs, VECTORS } from '../../graph/inputs/tokens.js'
import type { Model } from '../../graph/model-folder.js'
import { type Graph, readGraph } from '../../graph/view/graph.js'
import { type Feeds, floatsOf, type RuntimeTensor } from '../../runtime/runtime.js'
import { gridPositions } from '../../tasks/pictures/picture-places.js'
import type { PictureVectors } from '../../tasks/pictures/pictures.js'
import type { Mix } from '../adapters/choice.js'
import type { RunGraph } from '../graphs.js'
import type { NextToken, Padding } from './decoding.js'

const EMBEDDING = 'embed_tokens'

export interface VectorRow {
  readonly id?: number
  readonly ids: readonly number[]
  readonly pictures: PictureVectors | undefined
  readonly mix: Mix
}

interface Row extends VectorRow {
  readonly id: number
  next: readonly number[]
  /** Positions of all tokens (3, length), where pictures lie on a grid, and the one behind them. */
  readonly positions: readonly (readonly number[])[] | undefined
  after: number
}

export type OpenEmbedding = (rows: readonly VectorRow[], padding: Padding, run: RunGraph) => TokenVectors

interface VectorGraphs {
  readonly embedding: Graph
  readonly decoder: Graph
  readonly padTokenId: number
}

export async function openEmbedding(model: Model, inputs: Pick<TokenInputs, 'cache'>): Promise<OpenEmbedding> {
  requireCache(inputs)
  const { graphs, directory, padTokenId } = model
  if (graphs[EMBEDDING] === undefined) {
    throw new FileError({
      where: directory.name,
      what: `no ${EMBEDDING}.onnx in this folder, which gives the vectors that the decoder reads`,
      got: `graphs ${Object.values(graphs).join(', ')}`,
      hint: `Copy onnx/${EMBEDDING}.onnx from where the model came from`,
    })
  }
  const embedding = readGraph(await model.openGraph(EMBEDDING))
  const { roles, others } = splitInputs(embedding)
  if (others.length === 0 && roles.length === 1 && roles[0].role === 'inputIds') {
    const own = { embedding, decoder: readGraph(model.onnx), padTokenId }
    return (rows, padding, run) => new TokenVectors(own, rows, padding, run)
  }
  throw new UnsupportedError({
    where: EMBEDDING,
    what: 'it reads more than tokens',
    expected: 'one input input_ids',
    got: embedding.inputs.map(({ name }) => name).join(', '),
  })
}

function requireCache({ cache }: Pick<TokenInputs, 'cache'>): void {
  if (cache.length > 0) return
  throw new UnsupportedError({
    where: 'ONNX model',
    what: 'a decoder that reads vectors and has no key-value cache',
    expected: 'inputs past_key_values.*',
    hint: 'Take decoder_model_merged.onnx as transformers.js publishes it',
  })
}

export class TokenVectors {
  #rows: Row[]
  #isFirst = true

  constructor(
    private readonly graphs: VectorGraphs,
    rows: readonly VectorRow[],
    private readonly padding: Padding,
    private readonly run: RunGraph,
  ) {
    const places = graphs.decoder.inputs.find(({ name }) => name === 'position_ids')
    const hasGrids = places !== undefined && rows.some(({ pictures }) => (pictures?.grids.length ?? 0) > 0)
    this.#rows = rows.map((row, index) => {
      const positions = hasGrids ? gridPositions(row.ids, row.pictures) : undefined
      const after = positions === undefined ? 0 : Math.max(...positions.map((axis) => Math.max(...axis))) + 1
      return { id: index, ...row, next: row.ids, positions, after }
    })
  }

  push(newest: readonly NextToken[], ended: readonly number[]): void {
    for (const { row: text, id } of newest) {
      const row = this.#rows.find((one) => one.id === text)
      if (row !== undefined) row.next = [id]
    }
    this.#rows = this.#rows.filter(({ id }) => !ended.includes(id))
  }

  async feeds(): Promise<Feeds> {
    const rows = this.#rows
    const [batch, sequence] = [rows.length, Math.max(...rows.map(({ next }) => next.length))]
    const starts = rows.map(({ next }) => (this.padding === 'left' ? sequence - next.length : 0))
    const { embedding, padTokenId } = this.graphs
    const inputIds = new Int32Array(batch * sequence).fill(padTokenId)
    rows.forEach(({ next, pictures }, row) => {
      // The embedding may have no row for the token of pictures.
      const ids = next.map((id) => (id === pictures?.token && this.#isFirst ? padTokenId : id))
      inputIds.set(ids, row * sequence + starts[row])
    })
    const tokens = { batch, sequence, inputIds, attentionMask: new Uint8Array(batch * sequence).fill(1) }
    const feeds = roleFeeds(splitInputs(embedding).roles, tokens)
    const mixes = rows.map(({ mix }) => mix)
    const outputs = await this.run(EMBEDDING, feeds, mixes)
    const plain = outputs[VECTORS] ?? Object.values(outputs)[0]
    const vectors = this.#isFirst ? this.#withPictures(plain, starts) : plain
    const positions = this.#positions(sequence, starts)
    this.#isFirst = false
    return { [VECTORS]: this.#typed(vectors), ...positions }
  }

  #withPictures(vectors: RuntimeTensor, starts: readonly number[]): RuntimeTensor {
    if (this.#rows.every(({ pictures }) => pictures === undefined)) return vectors
    const [, sequence, width] = vectors.dims
    const data = floatsOf(vectors).slice()
    this.#rows.forEach(({ next, pictures }, row) => {
      if (pictures === undefined) return
      if (pictures.width !== width) {
        throw new MismatchError({
          where: 'vision_encoder',
          what: 'its vectors have another width than those of tokens',
          expected: `${width}`,
          got: `${pictures.width}`,
        })
      }
      let from = 0
      next.forEach((id, i) => {
        if (id !== pictures.token) return
        data.set(pictures.data.subarray(from, from + width), (row * sequence + starts[row] + i) * width)
        from += width
      })
    })
    return { type: 'float32', data, dims: vectors.dims }
  }

  #typed(vectors: RuntimeTensor): RuntimeTensor {
    const input = this.graphs.decoder.inputs.find(({ name }) => name === VECTORS)!
    const wanted = typeOf(input)
    if (wanted === vectors.type) return vectors
    const data = floatsOf(vectors)
    if (wanted === 'float16') return { type: 'float16', data: f32ToF16(data), dims: vectors.dims }
    return { type: 'float32', data, dims: vectors.dims }
  }

  /** Positions (3, batch, sequence); nothing where they count tokens. */
  #positions(sequence: number, starts: readonly number[]): Feeds {
    const rows = this.#rows
    if (rows[0].positions === undefined) return {}
    const [axes, batch] = [3, rows.length]
    const data = new BigInt64Array(axes * batch * sequence)
    rows.forEach((row, i) => {
      for (let axis = 0; axis < axes; axis++) {
        const start = (axis * batch + i) * sequence + starts[i]
        const own = this.#isFirst ? row.positions![axis] : [row.after]
        data.set(own.map(BigInt), start)
      }
      if (!this.#isFirst) row.after++
    })
    return { position_ids: { type: 'int64', data, dims: [axes, batch, sequence] } }
  }
}
