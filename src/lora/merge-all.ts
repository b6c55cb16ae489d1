// Several layers that merge together or not at all.

/**
 * Merges all, or none when one of them cannot be.
 *
 * @throws what the layer's own merge throws
 */
export function mergeOrNone(layers: Iterable<{ merge(): void; unmerge(): void }>): void {
  const done: { unmerge(): void }[] = []
  try {
    for (const layer of layers) {
      layer.merge()
      done.push(layer)
    }
  } catch (error) {
    for (const layer of done) layer.unmerge()
    throw error
  }
}
