// Reads picture files in Node with sharp, an optional peer.

import { access } from 'node:fs/promises'
import { ConfigError } from '../../../core/base/errors.js'
import { resolvePeer } from '../../../core/base/node/peers.js'
import type { RgbImage } from '../image.js'

interface Sharp {
  rotate(): Sharp
  toColourspace(name: string): Sharp
  removeAlpha(): Sharp
  raw(): Sharp
  toBuffer(options: { resolveWithObject: true }): Promise<{ data: Uint8Array; info: { width: number; height: number } }>
}
type SharpModule = (file: string | Uint8Array) => Sharp

let loading: Promise<SharpModule> | undefined

/** Reads a picture and rotates it as its camera was held. */
export async function decodeWithSharp(file: string | Uint8Array): Promise<RgbImage> {
  // Check the path first: for a wrong path, the advice to install sharp would not help.
  if (typeof file === 'string') await access(file)
  loading ??= loadSharp()
  const sharp = await loading
  const decoded = sharp(file).rotate().toColourspace('srgb').removeAlpha().raw()
  const { data, info } = await decoded.toBuffer({ resolveWithObject: true })
  return { data, width: info.width, height: info.height }
}

async function loadSharp(): Promise<SharpModule> {
  const found = resolvePeer('sharp', import.meta.url)
  if (found !== undefined) return ((await import(found)) as { default: SharpModule }).default
  loading = undefined
  throw new ConfigError({
    where: 'images',
    what: 'sharp, which reads files of pictures, is not installed',
    hint: 'Run npm install sharp, give pictures as { data, width, height }, or set the option decodeImage',
  })
}
