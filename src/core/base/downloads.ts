// Several downloads as one, for a bar that tells how much is still to come.

interface Progress {
  readonly name: string
  readonly receivedBytes: number
  readonly byteLength: number
}

/** Adds up the downloads that run at the same time. The first one after all are complete starts a new sum. */
export function sumOfDownloads() {
  const running = new Map<string, Progress & { readonly keptBytes: number }>()
  return (download: Progress) => {
    const known = running.get(download.name)
    running.set(download.name, { ...download, keptBytes: known?.keptBytes ?? download.receivedBytes })
    const sum = { files: running.size, isNew: known === undefined, receivedBytes: 0, byteLength: 0, keptBytes: 0 }
    for (const { receivedBytes, byteLength, keptBytes } of running.values()) {
      sum.receivedBytes += receivedBytes
      sum.byteLength += byteLength
      sum.keptBytes += keptBytes
    }
    if (sum.receivedBytes >= sum.byteLength) running.clear()
    return sum
  }
}
