// A cache as Python's huggingface_hub made it, described in tests/golden/hub-cache.json by scripts/golden/hub_cache.py.

import { mkdir, readdir, readFile, readlink, symlink, writeFile } from 'node:fs/promises'
import path from 'node:path'
import { describe, expect, test } from 'vitest'
import { contentOf, current, failure, inCache, open, text, useHub } from './toolkit.js'

useHub()

type Description = Record<string, { link: string } | { content: string }>
const golden = JSON.parse(await readFile(path.join(import.meta.dirname, '../../../golden/hub-cache.json'), 'utf8')) as {
  links: Description
  files: Description
}
const COMMIT = 'a'.repeat(40)
const OFFLINE = { HF_HUB_OFFLINE: '1' }
const MODEL = Uint8Array.from({ length: 320 }, (_, i) => i % 64)
const FILES = {
  'config.json': text('{"model_type": "llama"}\n'),
  'onnx/model.onnx': MODEL,
  'onnx/copy.onnx': MODEL,
  'README.md': text('# A model\n'),
}

async function make(description: Description, isWanted = (_name: string) => true): Promise<void> {
  for (const [name, entry] of Object.entries(description)) {
    if (!isWanted(name)) continue
    const file = path.join(current.home, 'hub', name)
    await mkdir(path.dirname(file), { recursive: true })
    if ('link' in entry) await symlink(entry.link, file)
    else await writeFile(file, Buffer.from(entry.content, 'latin1'))
  }
}

/** The cache, but not what Python alone keeps there. */
async function describeCache(): Promise<Description> {
  const found: Description = {}
  for (const entry of await readdir(inCache(), { recursive: true, withFileTypes: true })) {
    if (entry.isDirectory()) continue
    const file = path.join(entry.parentPath, entry.name)
    const name = path.relative(path.join(current.home, 'hub'), file).split(path.sep).join('/')
    const isLink = entry.isSymbolicLink()
    found[name] = isLink ? { link: await readlink(file) } : { content: await readFile(file, 'latin1') }
  }
  return found
}

describe.each(['links', 'files'] as const)('a cache with %s', (kind) => {
  test('opens offline, by branch, by pull request and by commit', async () => {
    await make(golden[kind])
    for (const revision of ['main', 'refs/pr/1', COMMIT]) {
      for (const [file, content] of Object.entries(FILES)) {
        expect(Buffer.compare(await contentOf(`org/model@${revision}`, file, OFFLINE), content)).toBe(0)
      }
    }
    expect(current.hub.seen).toEqual([])
  })

  test('opens offline without the list of files, which older versions do not keep', async () => {
    await make(golden[kind], (name) => !name.includes('/trees/'))
    const directory = await open('org/model/onnx', OFFLINE)
    expect(await directory.list()).toEqual(['copy.onnx', 'model.onnx'])
    expect((await failure(directory.open('model_q4.onnx'))).message).toMatch(/no such file in the repository/)
  })

  test('is what this package writes too', async () => {
    current.hub.repositories.set('org/model', {
      files: FILES,
      lfs: ['onnx/model.onnx', 'onnx/copy.onnx'],
      commit: COMMIT,
      refs: { main: COMMIT, 'refs/pr/1': COMMIT },
    })
    const variables = kind === 'files' ? { HF_HUB_DISABLE_SYMLINKS: '1' } : undefined
    for (const file of ['config.json', 'onnx/model.onnx', 'onnx/copy.onnx'])
      await contentOf('org/model', file, variables)
    await contentOf('org/model@refs/pr/1', 'README.md', variables)
    const python = Object.entries(golden[kind]).filter(([name]) => !/CACHEDIR\.TAG|\.no_exist/.test(name))
    expect(await describeCache()).toEqual(Object.fromEntries(python))
  })
})
