import { chmod, lstat, mkdir, readdir, readFile, readlink, rm, writeFile } from 'node:fs/promises'
import path from 'node:path'
import { beforeEach, describe, expect, test } from 'vitest'
import { readAll, readJson } from '../../../../src/core/base/bytes.js'
import { gitSha1, STRANGER, sha256, TOKEN } from './server.js'
import {
  blob,
  contentOf,
  current,
  FILES,
  failure,
  inCache,
  isWeights,
  noise,
  open,
  text,
  useHub,
  WEIGHTS,
} from './toolkit.js'

useHub()

describe('what comes', () => {
  test('the files that are opened and no others, into the layout of huggingface_hub', async () => {
    const directory = await open('org/model')
    expect(directory.name).toBe('org/model')
    expect(await directory.list()).toEqual(['README.md', 'config.json', 'pytorch_model.bin'])
    expect(await directory.folders()).toEqual(['onnx'])
    expect(await readJson(directory, 'config.json')).toEqual({ model_type: 'llama' })
    const source = await directory.open('onnx/model.onnx')
    expect(isWeights(await readAll(source))).toBe(true)
    expect(source.realPath).toBe(blob(WEIGHTS))
    await source.close()
    expect(current.hub.loaded).toEqual(['config.json', 'onnx/model.onnx'])

    const commit = current.hub.commitOf('org/model', 'main')!
    expect(await readFile(inCache('refs', 'main'), 'utf8')).toBe(commit)
    const config = `../../blobs/${gitSha1(FILES['config.json'])}`
    expect(await readlink(inCache('snapshots', commit, 'config.json'))).toBe(config)
    expect(await readlink(inCache('snapshots', commit, 'onnx', 'model.onnx'))).toBe(`../../../blobs/${sha256(WEIGHTS)}`)
    expect((await readdir(inCache('blobs'))).sort()).toEqual([gitSha1(FILES['config.json']), sha256(WEIGHTS)].sort())
  })

  test('is there the next time, online with one request, offline with none', async () => {
    await contentOf('org/model', 'onnx/model.onnx')
    current.hub.seen.length = 0
    expect(isWeights(await contentOf('org/model', 'onnx/model.onnx'))).toBe(true)
    expect(current.hub.seen.map(({ path: url }) => url)).toEqual(['/api/models/org/model/revision/main'])
    current.hub.seen.length = 0
    expect(isWeights(await contentOf('org/model', 'onnx/model.onnx', { HF_HUB_OFFLINE: '1' }))).toBe(true)
    const commit = current.hub.commitOf('org/model', 'main')!
    expect(isWeights(await contentOf(`org/model@${commit}`, 'onnx/model.onnx'))).toBe(true)
    expect(current.hub.seen).toEqual([])
  })

  test('is told before the first byte and until the last', async () => {
    await contentOf('org/model', 'onnx/model.onnx')
    expect(current.progress[0]).toEqual({ name: 'org/model/onnx/model.onnx', byteLength: 300_000, receivedBytes: 0 })
    expect(current.progress.at(-1)).toEqual({
      name: 'org/model/onnx/model.onnx',
      byteLength: 300_000,
      receivedBytes: 300_000,
    })
    const received = current.progress.map(({ receivedBytes }) => receivedBytes)
    expect(received).toEqual([...received].sort((a, b) => a - b))
  })

  test('a revision, a folder of it, and names with a slash or a blank', async () => {
    const [old, new_] = ['1'.repeat(40), '2'.repeat(40)]
    current.hub.repositories.set('org/two', {
      files: { 'a b/ü#?.json': text('[1]') },
      refs: { main: new_, 'v1.0': old, 'feature/x': old, 'refs/pr/3': old },
    })
    for (const revision of ['v1.0', 'feature%2Fx', 'refs/pr/3', old]) {
      const directory = await open(`org/two@${revision}/a b`)
      expect(directory.commit).toBe(old)
      expect(await readJson(directory, 'ü#?.json')).toEqual([1])
    }
    const refs = path.join(current.home, 'hub', 'models--org--two', 'refs')
    expect(await readFile(path.join(refs, 'refs', 'pr', '3'), 'utf8')).toBe(old)
    expect((await open('org/two')).commit).toBe(new_)
  })

  test('a new commit of a branch, with the content that stayed taken from the cache', async () => {
    await contentOf('org/model', 'onnx/model.onnx')
    const changed = { ...FILES, 'config.json': text('{"model_type": "gpt2"}') }
    current.hub.repositories.set('org/model', { files: changed, lfs: ['onnx/model.onnx'], commit: '3'.repeat(40) })
    current.hub.seen.length = 0
    const directory = await open('org/model')
    await (await directory.open('onnx/model.onnx')).close()
    expect(current.hub.loaded).toEqual([])
    expect(await readJson(directory, 'config.json')).toEqual({ model_type: 'gpt2' })
    expect(await readFile(inCache('refs', 'main'), 'utf8')).toBe('3'.repeat(40))
  })

  test('a new commit that did not come in full leaves the old one, which an error names', async () => {
    await contentOf('org/model', 'onnx/model.onnx')
    const old = current.hub.commitOf('org/model', 'main')!
    const changed = { ...FILES, 'onnx/model.onnx': noise(1000) }
    current.hub.repositories.set('org/model', { files: changed, lfs: ['onnx/model.onnx'], commit: '3'.repeat(40) })
    await contentOf('org/model', 'README.md')
    const error = await failure(contentOf('org/model', 'onnx/model.onnx', { HF_HUB_OFFLINE: '1' }))
    expect(error.message).toContain(`or name an older commit that is here: hf:org/model@${old}`)
    const kept = await contentOf(`org/model@${old}`, 'onnx/model.onnx', { HF_HUB_OFFLINE: '1' })
    expect(isWeights(kept)).toBe(true)
  })

  test.each(['<http://[bad>; rel="next"', '<http://a:99999/>; rel="next"', '<http://%>; rel=next'])(
    'a damaged address of the next page is no bug: %s',
    async (link) => {
      current.hub.link = link
      expect((await failure(open('org/model'))).message).toMatch(/the answer of .* is not the Hub's/)
    },
  )

  test('a list of many pages', async () => {
    current.hub.pageSize = 3
    const files = Object.fromEntries(Array.from({ length: 10 }, (_, i) => [`file-${i}`, text(`${i}`)]))
    current.hub.repositories.set('org/many', { files })
    expect(await (await open('org/many')).list()).toHaveLength(10)
  })

  test('an empty file', async () => {
    current.hub.repositories.set('org/empty', { files: { empty: new Uint8Array() } })
    expect(await contentOf('org/empty', 'empty')).toEqual(new Uint8Array())
  })

  test('ranges of a large file, of which nothing is kept', async () => {
    const large = noise(3 << 20)
    current.hub.repositories.set('org/large', {
      files: { 'model.safetensors': large, 'config.json': text('{}') },
      lfs: ['model.safetensors'],
    })
    const directory = await open('org/large', {}, { readsRanges: true })
    const source = await directory.open('model.safetensors')
    expect(await source.read(1_000_000, 10)).toEqual(large.subarray(1_000_000, 1_000_010))
    expect(source.realPath).toBeUndefined()
    await readJson(directory, 'config.json')
    expect(await readdir(path.join(current.home, 'hub', 'models--org--large', 'blobs'))).toEqual([gitSha1(text('{}'))])
    await contentOf('org/large', 'model.safetensors')
    current.hub.seen.length = 0
    await contentOf('org/large', 'model.safetensors', {}, { readsRanges: true })
    expect(current.hub.loaded).toEqual([])
  })

  describe('a file in place', () => {
    const large = noise(10_000_000)
    const openLarge = async () => {
      current.hub.repositories.set('org/large', { files: { 'model.onnx': large }, lfs: ['model.onnx'] })
      return (await open('org/large')).open('model.onnx', true)
    }
    const requests = (origin: string) => current.hub.seen.filter((seen) => seen.origin === origin)

    test('stays on the Hub until it is fetched or read', async () => {
      const fetched = await openLarge()
      expect(current.hub.loaded).toEqual([])
      await Promise.all([fetched.fetch?.(), fetched.fetch?.()])
      expect(fetched.fetch).toBeUndefined()
      expect(fetched.realPath).toBeDefined()
      expect(await fetched.read(5_000_000, 10)).toEqual(large.subarray(5_000_000, 5_000_010))
      expect(requests('storage').map(({ range }) => range)).toEqual([undefined])
      await fetched.close()
      expect((await openLarge()).fetch).toBeUndefined()
      await rm(path.join(current.home, 'hub', 'models--org--large'), { recursive: true })
      const read = await openLarge()
      expect(await read.read(5_000_000, 10)).toEqual(large.subarray(5_000_000, 5_000_010))
      expect(read.fetch).toBeUndefined()
      await read.close()
    })
  })

  test('ranges come from where the Hub has sent the first, and from the Hub if that address is no longer valid', async () => {
    current.hub.repositories.set('org/large', { files: { weights: noise(10_000_000) }, lfs: ['weights'] })
    const source = await (await open('org/large', {}, { readsRanges: true })).open('weights')
    for (const at of [0, 5_000_000, 9_000_000]) await source.read(at, 10)
    expect(current.hub.loaded).toHaveLength(1)
    current.hub.faults.set('weights', { status: 403, times: 1 })
    expect(await source.read(3_000_000, 10)).toEqual(noise(10_000_000).subarray(3_000_000, 3_000_010))
    expect(current.hub.loaded).toHaveLength(2)
    await source.close()
  })

  test('files in place of links where links are not wanted', async () => {
    await contentOf('org/model', 'onnx/model.onnx', { HF_HUB_DISABLE_SYMLINKS: '1' })
    const commit = current.hub.commitOf('org/model', 'main')!
    expect((await lstat(inCache('snapshots', commit, 'onnx', 'model.onnx'))).isFile()).toBe(true)
    expect(isWeights(await contentOf('org/model', 'onnx/model.onnx', { HF_HUB_OFFLINE: '1' }))).toBe(true)
  })
})

describe('the token', () => {
  beforeEach(
    () =>
      void current.hub.repositories.set('org/closed', { files: FILES, lfs: ['onnx/model.onnx'], access: 'private' }),
  )

  test('of HF_TOKEN or of the file goes to the Hub and to no other host', async () => {
    await contentOf('org/closed', 'onnx/model.onnx', { HF_TOKEN: TOKEN })
    await writeFile(path.join(current.home, 'token'), `${TOKEN}\n`)
    await contentOf('org/closed', 'config.json')
    const bearers = (origin: string) =>
      new Set(current.hub.seen.filter((seen) => seen.origin === origin).map(({ authorization }) => authorization))
    expect(bearers('hub')).toEqual(new Set([`Bearer ${TOKEN}`]))
    expect(bearers('storage')).toEqual(new Set([undefined]))
  })

  test('is missing, wrong, or of an account without access', async () => {
    expect((await failure(open('org/closed'))).message).toMatch(
      /no such model on the Hub, or a private one.*needs HF_TOKEN/,
    )
    expect((await failure(open('org/closed', { HF_TOKEN: 'hf_old' }))).message).toMatch(/the token is not valid/)
    current.hub.repositories.set('org/gated', { files: FILES, access: 'gated' })
    const gated = await failure(contentOf('org/gated', 'config.json'))
    expect(gated.message).toMatch(
      /a gated model.*Accept the terms at .*\/org\/gated, make a token at .*settings\/tokens, and set HF_TOKEN/,
    )
    const stranger = await failure(contentOf('org/gated', 'config.json', { HF_TOKEN: STRANGER }))
    expect(stranger.message).toMatch(/the account of the token may not read.*Accept the terms at .*\/org\/gated with/)
    expect(await contentOf('org/gated', 'config.json', { HF_TOKEN: TOKEN })).toEqual(FILES['config.json'])
  })

  test('that is none never appears in a message', async () => {
    const error = await open('org/model', { HF_TOKEN: 'se cret' }).catch((reason) => reason)
    expect(error).toMatchObject({ code: 'CONFIG', where: 'HF_TOKEN' })
    expect(error.message).not.toContain('cret')
  })
})

describe('what is not there', () => {
  test('an unknown id, with what is cached under a similar one', async () => {
    await contentOf('org/model', 'config.json')
    expect((await failure(open('org/modell'))).message).toMatch(
      /org\/modell: no such model on the Hub.*Did you mean org\/model\?/,
    )
    expect((await failure(open('org/modell', { HF_HUB_OFFLINE: '1' }))).message).toMatch(
      /not in the cache, and HF_HUB_OFFLINE is set.*Did you mean org\/model\?/,
    )
  })

  test('a revision, a file', async () => {
    expect((await failure(open('org/model@v9'))).message).toMatch(/org\/model: no revision "v9"/)
    const file = await failure((await open('org/model')).open('confg.json'))
    expect(file.message).toMatch(/no such file in the repository.*Did you mean config.json\?/)
  })

  test('a folder for the cache: HF_HOME is a file, or a place that may not be written to', async () => {
    const home = path.join(current.home, 'file')
    await writeFile(home, '')
    const none = await failure(contentOf('org/model', 'config.json', { HF_HOME: home }))
    expect(none.message).toMatch(/no folder.*The cache is .*, as HF_HOME says: set HF_HOME to a folder/)
    await mkdir(inCache('blobs'), { recursive: true })
    await chmod(inCache('blobs'), 0o500)
    // The administrator may write anywhere.
    if (process.getuid?.() === 0) return
    const denied = await failure(
      contentOf('org/model', 'config.json', { HF_HUB_CACHE: path.join(current.home, 'hub') }),
    )
    expect(denied.message).toMatch(/permission denied.*as HF_HUB_CACHE says: set HF_HUB_CACHE to a folder/)
  })

  test('a file that was not loaded, offline', async () => {
    await contentOf('org/model', 'config.json')
    const error = await failure(contentOf('org/model', 'README.md', { HF_HUB_OFFLINE: '1' }))
    expect(error.message).toMatch(/org\/model\/README.md: not in the cache, and HF_HUB_OFFLINE is set/)
    expect((await failure(open('org/new', { HF_HUB_OFFLINE: '1' }))).message).toMatch(
      /revision "main" is not in the cache/,
    )
  })

  test('the Hub: then the cache is used, and that is said', async () => {
    await contentOf('org/model', 'config.json')
    current.hub.repositories.delete('org/model')
    expect(await contentOf('org/model', 'config.json')).toEqual(FILES['config.json'])
    expect(current.warnings).toEqual([expect.stringMatching(/no such model.*The copy in the cache is used/)])
    const endpoint = current.hub.endpoint
    await current.hub.stop()
    expect(await contentOf('org/model', 'config.json', { HF_ENDPOINT: endpoint })).toEqual(FILES['config.json'])
    expect(current.warnings[1]).toMatch(/cannot be reached.*The copy in the cache is used/)
    expect((await failure(contentOf('org/model', 'README.md', { HF_ENDPOINT: endpoint }))).message).toMatch(
      /not in the cache, and cannot be reached/,
    )
    expect((await failure(open('org/other', { HF_ENDPOINT: endpoint }))).message).toMatch(/cannot be reached/)
  })

  test('a Hub behind the address', async () => {
    current.hub.faults.set('revision', { status: 500, times: 1 })
    expect((await open('org/model')).commit).toBe(current.hub.commitOf('org/model', 'main'))
    current.hub.faults.set('revision', { status: 503 })
    expect((await failure(open('org/model'))).message).toMatch(/the Hub fails for now; got 503/)
    current.hub.faults.set('revision', { stallAfter: 1 })
    expect((await failure(open('org/model', {}, { times: { stallMs: 50, retryMs: 1 } }))).message).toMatch(
      /no answer for 0.05 s/,
    )
  })
})

describe('a hostile Hub', () => {
  test.each(['../../evil', 'a/../../evil', '/etc/passwd', 'C:\\evil', 'a\\..\\evil', '.'])(
    'names a file %s',
    async (name) => {
      current.hub.extraEntries = [{ type: 'file', path: name, size: 1, oid: '0'.repeat(40) }]
      expect((await failure(open('org/model'))).message).toMatch(/leads out of the folder or nowhere/)
      expect(await readdir(current.home)).toEqual([])
    },
  )

  test.each([{ oid: '../../../evil' }, { lfs: { oid: '../x', size: 1 } }, { size: -1 }])(
    'gives digests and sizes that are none: %o',
    async (wrong) => {
      current.hub.extraEntries = [{ type: 'file', path: 'x', size: 1, oid: '0'.repeat(40), ...wrong }]
      await expect(open('org/model')).rejects.toMatchObject({ code: 'FORMAT' })
    },
  )

  test('redirects without end', async () => {
    current.hub.repositories.set('org/model', { files: FILES, lfs: ['config.json'] })
    current.hub.storage = `${current.hub.endpoint}/org/model/resolve/main/config.json?`
    expect((await failure(contentOf('org/model', 'config.json'))).message).toMatch(/more than 8 redirects/)
  })
})
