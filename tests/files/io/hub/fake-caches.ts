// A stand-in for a browser's CacheStorage in memory, with a size limit.

import type { Caches } from '../../../../src/files/io/web/open-source.js'

export class FakeCaches implements Caches {
  readonly entries = new Map<string, Blob>()
  /** The bytes that the browser grants. */
  maxBytes = Number.POSITIVE_INFINITY

  get byteLength(): number {
    return [...this.entries.values()].reduce((sum, { size }) => sum + size, 0)
  }

  async open(): Promise<Cache> {
    const { entries } = this
    return {
      match: async (url: string) => (entries.has(url) ? new Response(entries.get(url)) : undefined),
      put: async (url: string, response: Response) => {
        const content = await response.blob()
        if (this.byteLength + content.size > this.maxBytes) throw new DOMException('no room', 'QuotaExceededError')
        entries.set(url, content)
      },
      delete: async (url: string) => entries.delete(url),
    } as unknown as Cache
  }
}
