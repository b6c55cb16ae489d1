import { spawn } from 'node:child_process'
import { mkdir, readdir, readFile, rm, stat, writeFile } from 'node:fs/promises'
import path from 'node:path'
import { describe, expect, test } from 'vitest'
import { readAll } from '../../../../src/core/base/bytes.js'
import { newToken } from '../../../../src/files/io/node/owner.js'
import { sha256 } from './server.js'
import { blob, contentOf, current, failure, inCache, isWeights, noise, open, text, useHub, WEIGHTS } from './toolkit.js'

useHub()

describe('a download', () => {
  const file = 'onnx/model.onnx'
  const partials = async () =>
    (await readdir(inCache('blobs')).catch(() => [])).filter((name) => name.endsWith('.incomplete'))

  test('goes on where the connection broke', async () => {
    current.hub.faults.set(file, { breakAfter: 100_000, times: 2 })
    expect(isWeights(await contentOf('org/model', file))).toBe(true)
    const ranges = current.hub.seen.filter(({ origin }) => origin === 'storage').map(({ range }) => range)
    // How much of what was sent came is the system's to say.
    expect(ranges).toEqual([undefined, expect.stringMatching(/^bytes=\d+-$/), expect.stringMatching(/^bytes=\d+-$/)])
    expect(await partials()).toEqual([])
  })

  test('goes on where an earlier one ended, and says so', async () => {
    current.hub.faults.set(file, { breakAfter: 100_000, times: 1 })
    const control = new AbortController()
    const first = contentOf(
      'org/model',
      file,
      {},
      {
        signal: control.signal,
        onDownload: ({ receivedBytes }) =>
          receivedBytes >= 50_000 && control.abort(new DOMException('stopped', 'AbortError')),
      },
    )
    await expect(first).rejects.toMatchObject({ name: 'AbortError' })
    expect(await partials()).toEqual([`${sha256(WEIGHTS)}.lowrank.incomplete`])
    current.hub.faults.clear()
    current.hub.seen.length = 0
    expect(isWeights(await contentOf('org/model', file))).toBe(true)
    expect(current.progress[0].receivedBytes).toBeGreaterThanOrEqual(50_000)
    expect(current.hub.seen.at(-1)!.range).toBe(`bytes=${current.progress[0].receivedBytes}-`)
    expect(await partials()).toEqual([])
  })

  test('ends at once when its signal says so, also while nothing comes', async () => {
    current.hub.faults.set(file, { stallAfter: 1000 })
    const control = new AbortController()
    const waiting = contentOf('org/model', file, {}, { signal: control.signal, times: { stallMs: 60_000 } })
    while (current.hub.seen.every(({ origin }) => origin === 'hub'))
      await new Promise((resolve) => setTimeout(resolve, 10))
    control.abort(new DOMException('stopped', 'AbortError'))
    await expect(waiting).rejects.toMatchObject({ name: 'AbortError' })
  })

  test('gives up when a server always begins anew, wherever it breaks off', async () => {
    let cut = 10_000
    current.hub.faults.set(file, { ignoresRange: true, breakAfter: () => (cut += 10_000) })
    await expect(contentOf('org/model', file)).rejects.toMatchObject({
      what: expect.stringMatching(/^the download broke off at \d+ of \d+ bytes$/),
    })
    expect(current.hub.seen.filter(({ origin }) => origin === 'storage').length).toBeLessThanOrEqual(6)
  })

  test('gives up a connection of less than 1 kB/s, and does not try again', async () => {
    current.hub.faults.set(file, { pauseMs: 50, pieceBytes: 10 })
    const slow = contentOf('org/model', file, {}, { times: { stallMs: 2000, retryMs: 5, slowMs: 400 } })
    await expect(slow).rejects.toMatchObject({ what: 'the connection is too slow: less than 1 kB/s for 0.4 s' })
    expect(current.hub.seen.filter(({ origin }) => origin === 'storage')).toHaveLength(1)
    current.hub.faults.set(file, { pauseMs: 100 })
    const times = { stallMs: 2000, retryMs: 5, slowMs: 200 }
    expect(isWeights(await contentOf('org/model', file, {}, { times }))).toBe(true)
  })

  test('waits as long as the server asks, up to a minute; a longer time is told', async () => {
    for (const [retryAfter, told] of [
      ['61', '61 s'],
      ['1000000000000', '1000000000000 s'],
      [new Date(Date.now() + 7_200_000).toUTCString(), /\d{4} s/],
    ] as const) {
      current.hub.faults.set(file, { status: 503, retryAfter, times: 1 })
      await expect(contentOf('org/model', file)).rejects.toMatchObject({
        what: expect.stringMatching(
          new RegExp(`the server asks to wait ${told instanceof RegExp ? told.source : told}`),
        ),
      })
    }
    for (const retryAfter of ['0', '-5', 'soon', '', new Date(0).toUTCString()]) {
      current.hub.faults.set(file, { status: 503, retryAfter, times: 1 })
      expect(isWeights(await contentOf('org/model', file))).toBe(true)
      await rm(inCache(), { recursive: true })
    }
  })

  test('takes up what a process left that was killed', async () => {
    await mkdir(inCache('blobs'), { recursive: true })
    const dead = spawn(process.execPath, ['-e', ''])
    await new Promise((resolve) => dead.once('exit', resolve))
    const name = `${sha256(WEIGHTS)}.lowrank-${hostMark()}-${dead.pid}--00000000.incomplete`
    await writeFile(inCache('blobs', name), WEIGHTS.subarray(0, 1234))
    expect(isWeights(await contentOf('org/model', file))).toBe(true)
    expect(current.hub.seen.at(-1)!.range).toBe('bytes=1234-')
  })

  test('leaves the part alone that another process writes, and downloads for itself', async () => {
    await mkdir(inCache('blobs'), { recursive: true })
    const running = spawn(process.execPath, ['-e', 'setTimeout(() => {}, 60_000)'])
    const part = inCache('blobs', `${sha256(WEIGHTS)}.lowrank-${hostMark()}-${running.pid}--00000000.incomplete`)
    await writeFile(part, WEIGHTS.subarray(0, 1234))
    expect(isWeights(await contentOf('org/model', file))).toBe(true)
    expect((await readFile(part)).byteLength).toBe(1234)
    expect(current.hub.seen.at(-1)!.range).toBeUndefined()
    running.kill()
  })

  test('starts anew when what an earlier one left is damaged, or the server has no ranges', async () => {
    await mkdir(inCache('blobs'), { recursive: true })
    const left = path.join(inCache('blobs'), `${sha256(WEIGHTS)}.lowrank.incomplete`)
    await writeFile(left, new Uint8Array(1000))
    expect(isWeights(await contentOf('org/model', file))).toBe(true)
    await rm(inCache(), { recursive: true })
    await mkdir(inCache('blobs'), { recursive: true })
    await writeFile(left, WEIGHTS.subarray(0, 1000))
    current.hub.faults.set(file, { ignoresRange: true })
    expect(isWeights(await contentOf('org/model', file))).toBe(true)
    await rm(inCache(), { recursive: true })
    await mkdir(inCache('blobs'), { recursive: true })
    await writeFile(left, new Uint8Array(400_000))
    expect(isWeights(await contentOf('org/model', file))).toBe(true)
  })

  test('fails when nothing more comes, keeping what came', async () => {
    await mkdir(inCache('blobs'), { recursive: true })
    await writeFile(inCache('blobs', `${sha256(WEIGHTS)}.lowrank.incomplete`), WEIGHTS.subarray(0, 1000))
    current.hub.faults.set(file, { stallAfter: 0 })
    const error = await failure(contentOf('org/model', file, {}, { times: { stallMs: 60, retryMs: 1 } }))
    expect(error.message).toMatch(/the download broke off at 1000 of 300000 bytes; got no answer for 0.06 s/)
    expect(await partials()).toEqual([`${sha256(WEIGHTS)}.lowrank.incomplete`])
    expect(await readdir(inCache())).not.toContain('refs')
  })

  test.each([
    ['other bytes', noise(300_000).reverse()],
    ['fewer', WEIGHTS.subarray(0, 100)],
    ['more', noise(300_001)],
  ])('is dropped when %s come', async (_, content) => {
    current.hub.faults.set(file, { content })
    const error = await failure(contentOf('org/model', file))
    expect(error.message).toMatch(
      /org\/model\/onnx\/model.onnx: arrived damaged, and was deleted; expected 300000 bytes with SHA-256/,
    )
    expect(await readdir(inCache('blobs'))).toEqual([])
  })

  test('checks small files too', async () => {
    current.hub.faults.set('config.json', { content: text('{"model_type": "lloma"}') })
    expect((await failure(contentOf('org/model', 'config.json'))).message).toMatch(/arrived damaged.*git's SHA-1/)
  })

  test('is refused once and tried again when that passes', async () => {
    current.hub.faults.set(file, { status: 429, times: 2 })
    expect(isWeights(await contentOf('org/model', file))).toBe(true)
    current.hub.faults.set('README.md', { status: 410 })
    expect((await failure(contentOf('org/model', 'README.md'))).message).toMatch(
      /the Hub refuses; expected 200, got 410/,
    )
  })

  test('that the disk has no room for fails before its first byte', async () => {
    const byteLength = 1e15
    const lfs = { oid: '0'.repeat(64), size: byteLength, pointerSize: 130 }
    current.hub.extraEntries = [{ type: 'file', path: 'huge.onnx', size: byteLength, oid: '0'.repeat(40), lfs }]
    const error = await failure(contentOf('org/model', 'huge.onnx'))
    expect(error.message).toMatch(
      /org\/model\/huge.onnx: no room for it in .*; expected 1000000000 MB free, got \d+ MB/,
    )
    expect(current.hub.loaded).toEqual([])
  })

  test('of one file by two callers at once is one', async () => {
    const directory = await open('org/model')
    const [one, two] = await Promise.all([directory.open(file), directory.open(file)])
    expect(isWeights(await readAll(one)) && isWeights(await readAll(two))).toBe(true)
    await Promise.all([one.close(), two.close()])
    expect(current.hub.seen.filter(({ origin }) => origin === 'storage')).toHaveLength(1)
  })

  test('replaces a file that is cut in the cache', async () => {
    await contentOf('org/model', file)
    await writeFile(blob(WEIGHTS), WEIGHTS.subarray(0, 7))
    expect((await failure(contentOf('org/model', file, { HF_HUB_OFFLINE: '1' }))).message).toMatch(
      /damaged in the cache/,
    )
    expect(isWeights(await contentOf('org/model', file))).toBe(true)
    expect((await stat(blob(WEIGHTS))).size).toBe(300_000)
  })

  /** As the names of parts have it. */
  function hostMark(): string {
    return newToken().slice(0, 8)
  }
})
