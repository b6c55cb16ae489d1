// Files of pictures in Node, by sharp: an optional peer.

import { access } from 'node:fs/promises'
import { createRequire } from 'node:module'
import { join } from 'node:path'
import { pathToFileURL } from 'node:url'
import { ConfigError } from '../../base/errors.js'
import type { RgbImage } from '../image.js'

/** What is used of sharp. */
interface Sharp {
  rotate(): Sharp
  toColourspace(name: string): Sharp
  removeAlpha(): Sharp
  raw(): Sharp
  toBuffer(options: { resolveWithObject: true }): Promise<{
    data: Uint8Array
    info: { width: number; height: number }
  }>
}
type SharpModule = (file: string | Uint8Array) => Sharp

let loading: Promise<SharpModule> | undefined

/**
 * Reads a file, turned as its camera was held. Throws what the system says of a path that cannot be read, ConfigError when sharp is not
 * installed, and what sharp says of the file.
 */
export async function decodeWithSharp(file: string | Uint8Array): Promise<RgbImage> {
  // A wrong path is told of first: to install sharp would not help there.
  if (typeof file === 'string') await access(file)
  loading ??= loadSharp()
  const sharp = await loading
  const decoded = sharp(file).rotate().toColourspace('srgb').removeAlpha().raw()
  const { data, info } = await decoded.toBuffer({ resolveWithObject: true })
  return { data, width: info.width, height: info.height }
}

/** Looked for beside the program, then beside lowrank. */
async function loadSharp(): Promise<SharpModule> {
  const program = process.argv[1] ?? join(process.cwd(), 'package.json')
  for (const place of [program, import.meta.url]) {
    try {
      const path = createRequire(place).resolve('sharp')
      return ((await import(pathToFileURL(path).href)) as { default: SharpModule }).default
    } catch {
      // The next place.
    }
  }
  loading = undefined
  throw new ConfigError({
    where: 'images',
    what: 'sharp, which reads files of pictures, is not installed',
    hint: 'Run npm install sharp, give pictures as { data, width, height }, or set the option decodeImage',
  })
}
