// The pictures of a prompt: their vectors by the model's vision encoder, and the text with places for these vectors.

import { DataError, FileError } from '../../base/errors.js'
import { joinedUp } from '../../base/tensor.js'
import { pictureForm, type VisionInput, visionFeeds } from '../../graph/inputs/images.js'
import { type Model, requireTokenizer } from '../../graph/model-folder.js'
import { readGraph } from '../../graph/view/graph.js'
import { type ImageSource, type Pixels, readImage } from '../../images/image.js'
import { patchesOf } from '../../images/patches.js'
import { imageProcessor } from '../../images/processor.js'
import { tilesOf } from '../../images/tiles.js'
import type { Mix } from '../adapters/choice.js'
import { floatsOf } from '../feeds.js'
import type { WholeSession } from '../graphs.js'
import { type PictureSize, type PictureWriting, pictureWriting, readsNoPictures } from './picture-places.js'

export interface PictureVectors {
  readonly token: number
  readonly data: Float32Array
  readonly count: number
  readonly width: number
  /** Vectors of each picture by time, height and width, where the model places them on a grid. */
  readonly grids: readonly (readonly number[])[]
}

export type PictureSession = Pick<WholeSession, 'model' | 'decodeImage' | 'runGraph'>

type Piece = VisionInput & Omit<PictureSize, 'count'>

export class PromptPictures {
  /** The text that marks the place of a picture; undefined for a model that reads texts alone. */
  readonly place: string | undefined
  readonly count: number
  vectors: PictureVectors | undefined
  readonly #writing: PictureWriting | undefined
  readonly #session: PictureSession
  readonly #images: readonly ImageSource[]
  readonly #mix: Mix
  readonly #where: string

  constructor(session: PictureSession, images: readonly ImageSource[], mix: Mix, where: string) {
    this.#session = session
    this.#images = images
    this.#mix = mix
    this.#where = where
    this.count = images.length
    this.#writing = pictureWriting(session.model)
    this.place = this.#writing && this.#nameOf(this.#writing.mark)
    if (this.count > 0) requireVision(session.model, this.#writing)
  }

  /** Puts a token for each vector of a picture in the picture's place. */
  async fill(text: string): Promise<string> {
    const { place, count } = this
    const writing = this.#writing
    if (place === undefined || writing === undefined) return text
    const [first, ...rest] = text.split(place)
    if (rest.length !== count) {
      throw new DataError({
        where: this.#where,
        what: 'it has not as many places for pictures as there are pictures',
        expected: `${place} ${count === 1 ? 'once' : `${count} times`}, for ${count === 1 ? 'one picture' : `${count} pictures`}`,
        got: rest.length === 1 ? 'once' : `${rest.length} times`,
        hint: `Write ${place} in a text, or { type: 'image' } among the parts of a message, where a picture goes`,
      })
    }
    const pictures = []
    for (const [i, image] of this.#images.entries()) pictures.push(await this.#read(image, `image ${i + 1}`))
    if (pictures.length > 0) this.vectors = joined(writing.token, pictures)
    return pictures.reduce((all, picture, i) => all + writing.write(picture, (id) => this.#nameOf(id)) + rest[i], first)
  }

  check(ids: readonly number[]): void {
    if (this.vectors === undefined) return
    const { token, count } = this.vectors
    const places = ids.filter((id) => id === token).length
    if (places === count) return
    throw new DataError({
      where: this.#where,
      what: 'the tokenizer gives another number of tokens for its pictures than the vision encoder gives vectors',
      expected: `${count} times token ${token}`,
      got: `${places} times`,
    })
  }

  async #read(image: ImageSource, name: string): Promise<ReadPicture> {
    const { model, decodeImage } = this.#session
    const where = this.#where === 'prompt' ? name : `${this.#where}, ${name}`
    const graph = readGraph((await model.openGraph('vision_encoder')).proto)
    const pixels = await readImage(image, decodeImage, where)
    const piece = await pieceOf(pictureForm(graph), pixels, model, where)
    const outputs = await this.#session.runGraph('vision_encoder', visionFeeds(graph, piece), [this.#mix])
    const features = outputs.image_features ?? Object.values(outputs)[0]
    const width = features.dims.at(-1) ?? 0
    return {
      ...piece,
      data: floatsOf(features),
      width,
      count: features.data.length / width,
      grid: gridOf(piece, model),
    }
  }

  #nameOf(id: number): string {
    return requireTokenizer(this.#session.model).decode([id], { specialTokens: true })
  }
}

type ReadPicture = Piece & PictureSize & { readonly data: Float32Array; readonly width: number }

function joined(token: number, pictures: readonly ReadPicture[]): PictureVectors {
  const { width } = pictures[0]
  const data = joinedUp(pictures.map((one) => one.data))
  return { token, data, count: data.length / width, width, grids: pictures.flatMap(({ grid }) => (grid ? [grid] : [])) }
}

async function pieceOf(
  form: ReturnType<typeof pictureForm>,
  pixels: Pixels,
  { preprocessorConfig, config }: Model,
  where: string,
): Promise<Piece> {
  if (form === 'tiles') {
    const { pixels: values, count, edge, rows, columns } = tilesOf(pixels, preprocessorConfig!)
    return { pixels: values, dims: [1, count, 3, edge, edge], rows, columns }
  }
  if (form === 'patches') {
    const { pixels: values, width, rows, columns } = patchesOf(pixels, preprocessorConfig!, where)
    return { pixels: values, dims: [rows * columns, width], grid: [1, rows, columns], rows: 0, columns: 0 }
  }
  const processor = imageProcessor(preprocessorConfig, (config.vision_config as { image_size?: unknown }).image_size)
  const values = new Float32Array(3 * processor.width * processor.height)
  processor.write(processor.fit(pixels, where), values)
  return { pixels: values, dims: [1, 3, processor.height, processor.width], rows: 0, columns: 0 }
}

/** The grid of a picture's vectors: several patches become one. */
function gridOf({ grid }: Piece, { config, preprocessorConfig }: Model): readonly number[] | undefined {
  if (grid === undefined) return undefined
  const own = (config.vision_config as { spatial_merge_size?: unknown }).spatial_merge_size
  const merge = [own, preprocessorConfig?.merge_size, 2].find(Number.isSafeInteger) as number
  return [grid[0], grid[1] / merge, grid[2] / merge]
}

function requireVision(model: Model, writing: PictureWriting | undefined): void {
  const { directory, graphs, preprocessorConfig } = model
  if (writing === undefined) throw readsNoPictures(model)
  const missing =
    graphs.vision_encoder === undefined
      ? 'vision_encoder.onnx'
      : preprocessorConfig === undefined
        ? 'preprocessor_config.json'
        : undefined
  if (missing === undefined) return
  throw new FileError({
    where: directory.name,
    what: `no ${missing} in this folder, which pictures need`,
    got: `graphs ${Object.values(graphs).join(', ')}`,
    hint: `Copy ${missing} from where the model came from`,
  })
}
