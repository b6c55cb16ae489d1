import { describe, expect, it } from 'vitest'
import { MemoryDirectory } from '../../src/api/node.js'
import { openCheckpoint } from '../../src/files/checkpoint.js'
import { base, type TensorSketch } from '../merge/toolkit.js'

const SKETCHES: TensorSketch[] = [
  ['a', 'fp32', [2, 3]],
  ['b', 'bf16', [4]],
  ['c', 'I64', []],
]
const INDEX = 'model.safetensors.index.json'

async function withIndex(change: (map: Record<string, unknown>) => void): Promise<MemoryDirectory> {
  const directory = await base(SKETCHES, { shards: 2 })
  const index = JSON.parse(new TextDecoder().decode(directory.files.get(INDEX)))
  change(index.weight_map)
  directory.files.set(INDEX, new TextEncoder().encode(JSON.stringify(index)))
  return directory
}

describe('openCheckpoint', () => {
  it('indexes a single file and a sharded folder', async () => {
    const single = await openCheckpoint(await base(SKETCHES))
    expect([...single.tensors.keys()].sort()).toEqual(['a', 'b', 'c'])
    expect(single.indexPath).toBeUndefined()
    const sharded = await openCheckpoint(await base(SKETCHES, { shards: 2 }))
    expect(sharded.shards.map(({ path }) => path)).toEqual([
      'model-00001-of-00002.safetensors',
      'model-00002-of-00002.safetensors',
    ])
    expect(sharded.tensors.get('b')).toMatchObject({ shard: 1, info: { dtype: 'bf16' } })
    for (const { file, dataStart } of sharded.shards) {
      expect(Math.min(...[...file.tensors.values()].map(({ offset }) => offset))).toBe(dataStart)
    }
  })

  it.each<[string, (map: Record<string, unknown>) => void, object]>([
    [
      'a tensor in another shard',
      (map) => (map.a = map.b),
      { code: 'FORMAT', what: expect.stringContaining('not in the shard') },
    ],
    ['a tensor that is nowhere', (map) => (map.d = map.b), { code: 'FORMAT', got: 'no shard with it' }],
    ['a tensor left out', (map) => delete map.a, { code: 'FORMAT', what: expect.stringContaining('leaves out') }],
    [
      'a shard that is missing',
      (map) => (map.a = 'x.safetensors'),
      { code: 'FILE', what: expect.stringContaining('missing') },
    ],
    ...['../x', '/etc/x', '..\\x', 'C:\\x', 'C:x', 'a/x', './x', 'x\0', ''].map(
      (name): [string, (map: Record<string, unknown>) => void, object] => [
        `the name ${JSON.stringify(name)} for a shard`,
        (map) => {
          map.a = `${name}.safetensors`
        },
        { code: 'FORMAT', what: 'not the name of a shard beside the index' },
      ],
    ),
    ['a name that is no string', (map) => (map.a = 3), { code: 'FORMAT' }],
  ])('refuses an index with %s', async (_, change, expected) => {
    await expect(openCheckpoint(await withIndex(change))).rejects.toMatchObject(expected)
  })

  it('refuses a folder without a checkpoint, with several, or with pickles alone', async () => {
    await expect(openCheckpoint(new MemoryDirectory())).rejects.toMatchObject({ code: 'FILE' })
    await expect(openCheckpoint(new MemoryDirectory({ 'pytorch_model.bin': '' }))).rejects.toMatchObject({
      code: 'UNSUPPORTED',
    })
    const two = new MemoryDirectory({ 'a.safetensors': '', 'b.safetensors': '' })
    await expect(openCheckpoint(two)).rejects.toMatchObject({ what: expect.stringContaining('no index') })
  })

  it('refuses one name in two shards', async () => {
    const directory = await base(
      [
        ['a', 'fp32', [2]],
        ['b', 'fp32', [2]],
      ],
      { shards: 2 },
    )
    directory.files.set('model-00002-of-00002.safetensors', directory.files.get('model-00001-of-00002.safetensors')!)
    await expect(openCheckpoint(directory)).rejects.toMatchObject({ code: 'FORMAT' })
  })
})
