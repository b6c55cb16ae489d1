// Pictures that a model learns from. The vision encoder is not trained: its vectors replace those of the picture tokens
// before the decoder reads them.

import { DataError } from '../../../core/base/errors.js'
import { joinedUp } from '../../../core/base/tensor.js'
import { Hash } from '../../../model/base-record.js'
import { type DecodeImage, type ImageSource, readImage } from '../../../model/images/image.js'
import { VECTORS } from '../../../model/inputs/tokens.js'
import type { Model } from '../../../model/model-folder.js'
import { messageForm } from '../../../model/pictures/chat-places.js'
import { gridPositions, type PictureSize, type PictureWriting } from '../../../model/pictures/picture-places.js'
import {
  checkTokens,
  gridOf,
  nameOfToken,
  otherPlaces,
  type PictureReader,
  type Piece,
  pieceOf,
  requireVision,
  seePicture,
} from '../../../model/pictures/pictures.js'
import { sessionModel } from '../../../model/session-model.js'
import type { Span } from '../../../model/text/added-tokens.js'
import type { Chat, MessageOfParts, MessagePart } from '../../../model/text/chat.js'
import { type Example, IGNORED } from '../../../model/text/records.js'
import type { ChatTemplate } from '../../../model/text/template.js'
import { DataType } from '../../../onnx/format/tensors.js'
import { openEngine } from '../../../onnx/runtime/host.js'
import type { Feeds, SessionOptions } from '../../../onnx/runtime/runtime.js'
import { SessionTable } from '../../../onnx/runtime/session-table.js'
import type { ObjectiveGraph } from '../../graph/objective-graph.js'
import { ownLength } from '../token-probe.js'

/** Graph inputs: vectors of pictures, float32 (m, width), and the row and column of their tokens, int64 (m, 2). */
const [PICTURES, PLACES] = ['pictures/vectors', 'pictures/places']

/** How many vectors of a picture are assumed in the two runs that measure shapes. */
const PROBED = [9, 13] as const

/** Bytes of vectors to keep. Pictures beyond this go through the vision encoder in every step that needs them. */
const KEPT_BYTES = 2 ** 28

interface LearnedPicture extends PictureSize {
  readonly grid: readonly number[] | undefined
  readonly digest: Uint8Array
  vectors(): Promise<Float32Array>
}

/** An example with the pictures of its picture tokens. */
export interface PicturedExample extends Example {
  readonly pictures?: { readonly encoder: PictureEncoder; readonly list: readonly LearnedPicture[] }
}

export interface EncoderOptions extends Pick<SessionOptions, 'threads' | 'executionProviders'> {
  readonly model: Model
  readonly decodeImage?: DecodeImage | undefined
}

export class PictureEncoder implements PictureReader {
  readonly model: Model
  readonly decodeImage: DecodeImage | undefined
  readonly #writing: PictureWriting
  readonly token: number
  readonly #session: Pick<EncoderOptions, 'threads' | 'executionProviders'>
  readonly #pictures = new WeakMap<MessagePart, LearnedPicture>()
  #opening: ReturnType<PictureEncoder['open']> | undefined
  #kept = 0
  #ready = new Map<LearnedPicture, Float32Array>()
  /** Number of vectors for each tile, patch or uncut picture, and their width. */
  #form: { readonly count: number; readonly width: number } | undefined

  constructor({ model, decodeImage, ...session }: EncoderOptions) {
    this.model = model
    this.decodeImage = decodeImage
    this.#writing = requireVision(model)
    this.token = this.#writing.token
    this.#session = session
  }

  async see(feeds: Feeds): ReturnType<PictureReader['see']> {
    this.#opening ??= this.open()
    const { remote, id } = await this.#opening
    return remote.runSession(id, feeds)
  }

  /** @internal */
  async open() {
    const { model } = this
    const onnx = await model.openGraph('vision_encoder')
    const engine = await openEngine(model.runtime, 'train', async () => SessionTable, this.#session.threads)
    const { remote } = engine
    const options = { ...this.#session, lowMemory: true }
    const { id } = await remote.openSession(await sessionModel(onnx, onnx.proto), options)
    return { remote, id, close: engine.close }
  }

  async close(): Promise<void> {
    const opened = await this.#opening?.catch(() => undefined)
    await opened?.close()
  }

  async read(chat: Chat, images: readonly ImageSource[], where: string): Promise<void> {
    const places = partsOf(chat.messages)
    for (const [i, image] of images.entries()) {
      this.#pictures.set(places[i], await this.#read(image, `${where}, image ${i + 1}`))
    }
  }

  async #read(image: ImageSource, where: string): Promise<LearnedPicture> {
    const { model, decodeImage } = this
    const pixels = await readImage(image, decodeImage, where)
    const piece = await pieceOf(pixels, model, where)
    let kept: Float32Array | undefined
    const see = async (shown: Piece) => {
      const seen = await seePicture(this, shown)
      if (this.#kept + seen.data.byteLength > KEPT_BYTES) return seen
      this.#kept += seen.data.byteLength
      kept = seen.data
      return seen
    }
    if (this.#form === undefined) {
      const { count, width } = await see(piece)
      this.#form = { count: count / unitsOf(piece), width }
    }
    const { rows, columns } = piece
    const count = this.#form.count * unitsOf(piece)
    return {
      ...{ rows, columns, count },
      grid: gridOf(piece, model),
      digest: new TextEncoder().encode(new Hash().add(pixels.data).digest()),
      async vectors() {
        if (kept !== undefined) return kept
        const { data, width } = await see(await pieceOf(await readImage(image, decodeImage, where), model, where))
        if (data.length === count * width) return data
        throw new DataError({ where, what: 'the picture has changed since it was read' })
      },
    }
  }

  /** Returns a template that writes the tokens of pictures in their places. */
  template(plain: ChatTemplate, args: Readonly<Record<string, unknown>> | undefined): ChatTemplate {
    const { model } = this
    const nameOf = (id: number) => nameOfToken(model, id)
    const place = nameOf(this.#writing.mark)
    const form = messageForm(plain, args, place)
    const { name, text, marksGeneration } = plain
    return {
      ...{ name, text, marksGeneration },
      get calls() {
        return plain.calls
      },
      render: (messages, options, where) => {
        const pictures = this.#of(messages)
        const rendered = plain.render(form(messages), options, where)
        const [first, ...rest] = rendered.text.split(place)
        if (rest.length !== pictures.length) throw otherPlaces(place, pictures.length, rest.length, where)
        let [whole, end] = [first, first.length]
        const moves: [from: number, by: number][] = []
        for (const [i, picture] of pictures.entries()) {
          const tokens = this.#writing.write(picture, nameOf)
          whole += tokens + rest[i]
          moves.push([end + place.length, tokens.length - place.length])
          end += place.length + rest[i].length
        }
        const moved = (at: number) => moves.reduce((to, [from, by]) => (from <= at ? to + by : to), at)
        const span = ({ start, end }: Span) => ({ start: moved(start), end: moved(end) })
        return { text: whole, generated: rendered.generated.map(span) }
      },
    }
  }

  #of(messages: readonly MessageOfParts[]): LearnedPicture[] {
    return partsOf(messages).flatMap((part) => this.#pictures.get(part) ?? [])
  }

  /** Adds the pictures of a chat to its example, and takes picture tokens out of the targets. */
  pictured(example: Example, { messages }: Chat, where: string): PicturedExample {
    const list = this.#of(messages)
    if (list.length === 0) return example
    const { inputIds } = example
    const { token } = this
    const vectors = list.reduce((sum, { count }) => sum + count, 0)
    checkTokens(inputIds, token, vectors, where)
    const labels = example.labels.map((label) => (label === token ? IGNORED : label))
    return { inputIds, labels, pictures: { encoder: this, list } }
  }

  addTo(objective: ObjectiveGraph): void {
    const vectors = objective.input(PICTURES, DataType.FLOAT, ['picture vectors', this.#form!.width])
    const places = objective.input(PLACES, DataType.INT64, ['picture vectors', 2])
    const { g, graph } = objective
    graph.putBehind(VECTORS, (plain) => g.op('ScatterND', [plain, places, vectors]), 'plain')
  }

  /** Feeds of pictures in the two runs that measure shapes. */
  readonly probe = PROBED.map((count) => () => {
    return this.#feeds(new Float32Array(count * this.#form!.width), Array(2 * count).fill(0))
  })

  readonly length = ownLength('picture vectors', PROBED, { input: PICTURES, axis: 0 })

  async prepare(examples: readonly PicturedExample[]): Promise<void> {
    this.#ready = new Map()
    for (const picture of examples.flatMap(({ pictures }) => pictures?.list ?? []))
      this.#ready.set(picture, await picture.vectors())
  }

  /** Adds the pictures of prepared examples to the feeds of their tokens. `length`: tokens of a row. */
  feeds(examples: readonly PicturedExample[], length: number, tokens: Feeds): Feeds {
    const { token, model } = this
    const vectors: Float32Array[] = []
    const places: number[] = []
    const { input_ids: ids, position_ids: positions } = tokens
    for (const [row, { inputIds, pictures: { list } = { list: [] } }] of examples.entries()) {
      for (const picture of list) vectors.push(this.#ready.get(picture)!)
      if (list.length === 0) continue
      inputIds.forEach((id, i) => {
        if (id !== token) return
        places.push(row, i)
        // The embedding may lack a row for the picture token.
        ids.data[row * length + i] = (
          typeof ids.data[0] === 'bigint' ? BigInt(model.padTokenId) : model.padTokenId
        ) as number
      })
      const grids = list.flatMap(({ grid }) => (grid === undefined ? [] : [grid]))
      if (grids.length === 0 || positions?.dims.length !== 3) continue
      const axes = gridPositions([...inputIds], { token, grids })
      axes.forEach((axis, i) => {
        ;(positions.data as BigInt64Array).set(axis.map(BigInt), (i * examples.length + row) * length)
      })
    }
    return { ...tokens, ...this.#feeds(joinedUp(vectors), places) }
  }

  #feeds(data: Float32Array, places: readonly number[]): Feeds {
    const count = places.length / 2
    return {
      [PICTURES]: { type: 'float32', data, dims: [count, this.#form!.width] },
      [PLACES]: { type: 'int64', data: BigInt64Array.from(places, BigInt), dims: [count, 2] },
    }
  }
}

function partsOf(messages: readonly MessageOfParts[]): MessagePart[] {
  const parts = messages.flatMap(({ content }) => (typeof content === 'object' ? content : []))
  return parts.filter(({ type }) => type === 'image')
}

/** Counts the tiles of (pictures, tiles, 3, edge, edge) or the patches of (patches, width); 1 for an uncut picture. */
function unitsOf({ dims }: Piece): number {
  return dims.length === 5 ? dims[1] : dims.length === 2 ? dims[0] : 1
}
