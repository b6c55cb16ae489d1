// Decodes picture files in browsers.

import type { RgbImage } from './image.js'

interface CanvasContext {
  drawImage(image: unknown, x: number, y: number): void
  getImageData(x: number, y: number, width: number, height: number): { data: ArrayLike<number> }
}
interface Browser {
  createImageBitmap(file: unknown): Promise<{ width: number; height: number; close(): void }>
  OffscreenCanvas: new (width: number, height: number) => { getContext(kind: '2d'): CanvasContext | null }
  Blob: new (parts: readonly unknown[]) => unknown
}

export async function decodeInBrowser(file: string | Uint8Array): Promise<RgbImage> {
  if (typeof file === 'string') throw new TypeError('a path, and browsers cannot open paths')
  const { createImageBitmap, OffscreenCanvas, Blob } = globalThis as unknown as Browser
  const bitmap = await createImageBitmap(new Blob([file]))
  const { width, height } = bitmap
  const context = new OffscreenCanvas(width, height).getContext('2d')
  if (context === null) throw new TypeError('no canvas')
  context.drawImage(bitmap, 0, 0)
  bitmap.close()
  return { data: context.getImageData(0, 0, width, height).data, width, height }
}
