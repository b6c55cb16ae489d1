// Merging in Chromium gives the same bytes as in Node, under each policy.

import { createHash } from 'node:crypto'
import { fileURLToPath } from 'node:url'
import { beforeAll, describe, expect, it } from 'vitest'
import { MemoryDirectory, saveAdapter } from '../../../src/api/node.js'
import { CHUNK_BYTES } from '../../../src/merge/plan/layout.js'
import { browser, buildPage, ISOLATED, STRICT } from '../../browser.js'
import { adapter, base, mergeCheckpoint, type TensorSketch, unmergeCheckpoint } from '../toolkit.js'
import type { Digests, PageResult } from './page.js'

// Weights of several chunks in every type, and tensors that are copied.
const SKETCHES: TensorSketch[] = [
  ['a_proj.weight', 'bf16', [1200, 700]],
  ['b_proj.weight', 'fp16', [33, 64]],
  ['c_proj.weight', 'fp32', [40, 24]],
  ['d_proj.weight', 'fp64', [24, 40]],
  ['steps', 'I64', [5]],
  ['norm.weight', 'bf16', [700]],
]

function digestsOf({ files }: MemoryDirectory): Digests {
  return Object.fromEntries([...files].map(([name, bytes]) => [name, digest(bytes)]))
}

function digest(bytes: Uint8Array): string {
  return createHash('sha256').update(bytes).digest('hex')
}

describe.skipIf(browser === undefined)('mergeCheckpoint in Chromium', () => {
  const files = new Map<string, Uint8Array>()
  const page = buildPage<PageResult>(fileURLToPath(new URL('page.ts', import.meta.url)), files)
  let expected: Partial<PageResult>
  beforeAll(async () => {
    const from = await base(SKETCHES, { shards: 3, files: { 'tokenizer.json': '{}' } })
    const lora = adapter({ a_proj: [1200, 700], b_proj: [33, 64], c_proj: [40, 24], d_proj: [24, 40] })
    const loraFolder = new MemoryDirectory()
    await saveAdapter(lora, loraFolder)
    for (const [folder, directory] of Object.entries({ base: from, adapter: loraFolder })) {
      for (const [name, bytes] of directory.files) files.set(`/${folder}/${name}`, bytes)
    }
    files.set('/files.json', Buffer.from(JSON.stringify([...files.keys()].map((path) => path.slice(1)))))
    const [merged, single, unmerged] = [new MemoryDirectory(), new MemoryDirectory(), new MemoryDirectory()]
    await mergeCheckpoint(from, loraFolder, merged)
    await mergeCheckpoint(from, loraFolder, single, {
      weightsOnly: true,
      maxShardBytes: 2 ** 40,
    })
    await unmergeCheckpoint(merged, loraFolder, unmerged)
    expect(Object.keys(digestsOf(merged))).toHaveLength(6)
    expect([...single.files.keys()]).toEqual(['model.safetensors'])
    const written = [...merged.files.values()].reduce((sum, { byteLength }) => sum + byteLength, 0)
    const index = merged.files.get('model.safetensors.index.json')!.byteLength
    const baseFiles = ['config.json', 'tokenizer.json'].reduce(
      (sum, name) => sum + merged.files.get(name)!.byteLength,
      index,
    )
    expected = {
      folder: digestsOf(merged),
      changed: 4,
      stream: digest(single.files.get('model.safetensors')!),
      largestPiece: expect.toSatisfy((bytes: number) => bytes > CHUNK_BYTES / 2 && bytes <= CHUNK_BYTES),
      progress: { writtenBytes: written - baseFiles, totalBytes: written - baseFiles },
      unmerged: digestsOf(unmerged),
      stopped: [],
      stoppedBy: expect.stringMatching(/^AbortError /),
      errors: {
        'no such file': expect.stringMatching(/^FILE merged\/absent: cannot be read: no such file/),
        'a name that leads out': expect.stringMatching(/^FILE merged: .*leads out of the folder/),
        'a folder': expect.stringMatching(/^FILE opfs\/merged: .*a folder where a file is expected/),
        'the base': 'FILE merged: the output is the base itself. Choose another place for it',
        'picked files': expect.stringMatching(/^FILE adapter\/\S+: files that a user picked cannot be written/),
      },
    }
  })

  it('on an ordinary page', async () => {
    expect(await page.open({})).toEqual({ ...expected, isIsolated: false })
  })

  it('on a page that is isolated across origins', async () => {
    expect(await page.open(ISOLATED)).toEqual({ ...expected, isIsolated: true })
  })

  it('says what a content security policy without WebAssembly must allow', async () => {
    expect(await page.open(STRICT)).toMatchObject({ failed: expect.stringMatching(/wasm-unsafe-eval/) })
  })
})
