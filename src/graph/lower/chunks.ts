// Operators of linear attention are written out in chunks of tokens for training.

/** Tokens of a chunk. */
export const CHUNK = 64

const CHUNKED = ['LinearAttention', 'GatedDeltaNet']

export function hasChunks({ nodes }: { readonly nodes: readonly { readonly opType: string }[] }): boolean {
  return nodes.some(({ opType }) => CHUNKED.includes(opType))
}
