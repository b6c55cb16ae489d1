// The golden texts about pictures in tests/golden/graphs.

import { readFileSync } from 'node:fs'
import path from 'node:path'
import type { Prompt, RgbImage } from '../src/api/node.js'
import { graphsFolder } from './several-graphs.js'

export interface Continued {
  readonly ids: number[]
  readonly logprobs: number[]
}

export interface PictureCase {
  readonly prompt?: string
  readonly messages?: Prompt
  /** The names of the pictures. */
  readonly images: string[]
  readonly inputIds: number[]
  readonly base: Continued
  readonly adapted: Continued
}

export function pictureGolden(name: string): { cases: PictureCase[]; picture(name: string): RgbImage } {
  const file = path.join(graphsFolder(name), 'golden', 'texts.json')
  const { cases, pictures } = JSON.parse(readFileSync(file, 'utf8'))
  const picture = (key: string) => {
    const { data, width, height } = pictures[key]
    return { data: new Uint8Array(Buffer.from(data, 'base64')), width, height }
  }
  return { cases, picture }
}
