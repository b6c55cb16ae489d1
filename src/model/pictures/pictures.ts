// The pictures of a prompt: runs the vision encoder, and writes the text with a token for each vector.

import { DataError, FileError } from '../../core/base/errors.js'
import { joinedUp } from '../../core/base/tensor.js'
import { type Feeds, floatsOf, type RuntimeTensor } from '../../onnx/runtime/runtime.js'
import { readGraph } from '../../onnx/view/graph.js'
import { type DecodeImage, type ImageSource, type Pixels, readImage } from '../images/image.js'
import { patchesOf } from '../images/patches.js'
import { imageProcessor } from '../images/processor.js'
import { tilesOf } from '../images/tiles.js'
import { pictureForm, type VisionInput, visionFeeds } from '../inputs/images.js'
import { type Model, requireTokenizer } from '../model-folder.js'
import { type PictureSize, type PictureWriting, pictureWriting, readsNoPictures } from './picture-places.js'

export interface PictureVectors {
  readonly token: number
  readonly data: Float32Array
  readonly count: number
  readonly width: number
  /** Number of vectors of each picture by time, height and width, if the model places them on a grid. */
  readonly grids: readonly (readonly number[])[]
}

export interface PictureReader {
  readonly model: Model
  readonly decodeImage: DecodeImage | undefined
  see(feeds: Feeds): Promise<Record<string, RuntimeTensor>>
}

/** A picture as the vision encoder reads it. */
export type Piece = VisionInput & Omit<PictureSize, 'count'>

export class PromptPictures {
  /** The text that marks the place of a picture; undefined if the model reads only texts. */
  readonly place: string | undefined
  readonly count: number
  vectors: PictureVectors | undefined
  readonly #writing: PictureWriting | undefined

  constructor(
    private readonly reader: PictureReader,
    private readonly images: readonly ImageSource[],
    private readonly where: string,
  ) {
    this.count = images.length
    this.#writing = pictureWriting(reader.model)
    this.place = this.#writing && nameOfToken(reader.model, this.#writing.mark)
    if (this.count > 0) requireVision(reader.model)
  }

  /** Replaces each picture's place by a token for each of its vectors. */
  async fill(text: string): Promise<string> {
    const { place, count } = this
    const writing = this.#writing
    if (place === undefined || writing === undefined) return text
    const [first, ...rest] = text.split(place)
    if (rest.length !== count) throw otherPlaces(place, count, rest.length, this.where)
    const pictures = []
    for (const [i, image] of this.images.entries()) pictures.push(await this.#read(image, `image ${i + 1}`))
    if (pictures.length > 0) this.vectors = joined(writing.token, pictures)
    const { model } = this.reader
    const nameOf = (id: number) => nameOfToken(model, id)
    return pictures.reduce((all, picture, i) => all + writing.write(picture, nameOf) + rest[i], first)
  }

  check(ids: readonly number[]): void {
    if (this.vectors !== undefined) checkTokens(ids, this.vectors.token, this.vectors.count, this.where)
  }

  async #read(image: ImageSource, name: string) {
    const { model, decodeImage } = this.reader
    const where = this.where === 'prompt' ? name : `${this.where}, ${name}`
    const piece = await pieceOf(await readImage(image, decodeImage, where), model, where)
    return { ...piece, ...(await seePicture(this.reader, piece)), grid: gridOf(piece, model) }
  }
}

export async function seePicture(reader: PictureReader, piece: Piece) {
  const graph = readGraph(await reader.model.openGraph('vision_encoder'))
  const outputs = await reader.see(visionFeeds(graph, piece))
  const features = outputs.image_features ?? Object.values(outputs)[0]
  const width = features.dims.at(-1) ?? 0
  return { data: floatsOf(features), width, count: features.data.length / width }
}

export function nameOfToken(model: Model, id: number): string {
  return requireTokenizer(model).decode([id], { specialTokens: true })
}

export function otherPlaces(place: string, count: number, got: number, where: string): DataError {
  return new DataError({
    where,
    what: 'the number of its places for pictures is not the number of pictures',
    expected: `${place} ${count === 1 ? 'once' : `${count} times`}, for ${count === 1 ? 'one picture' : `${count} pictures`}`,
    got: got === 1 ? 'once' : `${got} times`,
    hint: `Write ${place} in a text, or { type: 'image' } among the parts of a message, where a picture goes`,
  })
}

export function checkTokens(ids: ArrayLike<number>, token: number, count: number, where: string): void {
  let places = 0
  for (let i = 0; i < ids.length; i++) if (ids[i] === token) places++
  if (places === count) return
  throw new DataError({
    where,
    what: 'the tokenizer gives another number of tokens for its pictures than the vision encoder gives vectors',
    expected: `${count} times token ${token}`,
    got: `${places} times`,
  })
}

function joined(
  token: number,
  pictures: readonly (Pick<PictureVectors, 'data' | 'width'> & Pick<Piece, 'grid'>)[],
): PictureVectors {
  const { width } = pictures[0]
  const data = joinedUp(pictures.map((picture) => picture.data))
  return { token, data, count: data.length / width, width, grids: pictures.flatMap(({ grid }) => (grid ? [grid] : [])) }
}

export async function pieceOf(pixels: Pixels, model: Model, where: string): Promise<Piece> {
  const { preprocessorConfig, config } = model
  const form = pictureForm(readGraph(await model.openGraph('vision_encoder')))
  if (form === 'tiles') return tilesOf(pixels, preprocessorConfig!)
  if (form === 'patches') return { ...patchesOf(pixels, preprocessorConfig!, where), rows: 0, columns: 0 }
  const processor = imageProcessor(preprocessorConfig, (config.vision_config as { image_size?: unknown }).image_size)
  const values = new Float32Array(3 * processor.width * processor.height)
  processor.write(processor.fit(pixels, where), values)
  return { pixels: values, dims: [1, 3, processor.height, processor.width], rows: 0, columns: 0 }
}

/** The grid of a picture's vectors. The model merges neighboring patches into one vector. */
export function gridOf({ grid }: Piece, { config, preprocessorConfig }: Model): readonly number[] | undefined {
  if (grid === undefined) return undefined
  const configured = (config.vision_config as { spatial_merge_size?: unknown }).spatial_merge_size
  const merge = [configured, preprocessorConfig?.merge_size, 2].find(Number.isSafeInteger) as number
  return [grid[0], grid[1] / merge, grid[2] / merge]
}

/** As {@link pictureWriting}, but throws UnsupportedError or FileError if the model cannot read pictures. */
export function requireVision(model: Model): PictureWriting {
  const { directory, graphs, preprocessorConfig } = model
  const writing = pictureWriting(model)
  if (writing === undefined) throw readsNoPictures(model)
  const missing =
    graphs.vision_encoder === undefined
      ? 'vision_encoder.onnx'
      : preprocessorConfig === undefined
        ? 'preprocessor_config.json'
        : undefined
  if (missing === undefined) return writing
  throw new FileError({
    where: directory.name,
    what: `no ${missing} in this folder, which pictures need`,
    got: `graphs ${Object.values(graphs).join(', ')}`,
    hint: `Copy ${missing} from where the model came from`,
  })
}
