// What a run records about its base, and errors for initializations and targets that it cannot follow.

import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { ConfigError, type Init, loadAdapter, loadModel, MemoryDirectory, type Model } from '../../src/api/node.js'
import { HubDirectory } from '../../src/files/io/hub/directory.js'
import { NodeDirectory } from '../../src/files/io/node/files.js'
import { ModelSession } from '../../src/run/model-session.js'
import { baseNameOf } from '../../src/train/about-run.js'
import { feedsOf, maxDifference } from '../run/models.js'
import { data, folder, module, path, trainTiny } from './tiny.js'

let model: Model
beforeAll(async () => {
  model = await loadModel(folder, { runtime: { module } })
})
afterAll(() => model.close())

const read = (directory: MemoryDirectory, file: string) => new TextDecoder().decode(directory.files.get(file))

describe('the base', () => {
  it('is the folder that was opened, whatever its config.json says of itself', async () => {
    const other = { ...model, config: { ...model.config, _name_or_path: 'nreimers/MiniLM-L6-H384-uncased' } }
    const out = new MemoryDirectory()
    await trainTiny({ model: other, maxSteps: 1, out })
    expect(JSON.parse(read(out, 'adapter_config.json')).base_model_name_or_path).toBe(
      path('tests/golden/models/llama-optimum'),
    )
    expect(read(out, 'README.md')).not.toContain('nreimers')
    expect(read(out, 'README.md')).toContain(`from_pretrained("${folder.name}"`)
  })

  it.each([
    ['models/x', './models/x'],
    ['x', './x'],
    ['../x', '../x'],
    ['./x', './x'],
    ['/models/x', '/models/x'],
    ['C:\\models\\x', 'C:\\models\\x'],
    ['https://example.org/model/', 'https://example.org/model/'],
  ])('%s is written as %s, which is no id on the Hub', (name, written) => {
    expect(baseNameOf({ ...model, directory: new NodeDirectory(name) })).toEqual({ baseModel: written })
  })

  it('is the id on the Hub, with the revision where it is not the default one', () => {
    const files = { paths: new Set<string>(), open: () => Promise.reject(new Error('not opened')) }
    const hub = (revision: string) =>
      new HubDirectory({ kind: 'hub', id: 'org/name', revision, path: 'sub' }, 'abc', files)
    expect(baseNameOf({ ...model, directory: hub('main') })).toEqual({ baseModel: 'org/name' })
    expect(baseNameOf({ ...model, directory: hub('v2') })).toEqual({
      baseModel: 'org/name',
      peftFields: { revision: 'v2' },
    })
  })
})

it.each(['eva', 'lora-ga', 'corda', 'pissa', 'pissa-niter-4', 'olora', 'mica'] as Init[])(
  'a start that needs more than shapes is refused by name: %s',
  async (init) => {
    const error = await trainTiny({ model, data, config: { init } }).catch((error: unknown) => error)
    expect(error).toBeInstanceOf(ConfigError)
    expect(error).toMatchObject({ where: 'init', got: init })
    if (['eva', 'lora-ga', 'corda', 'mica'].includes(init)) expect((error as ConfigError).hint).toContain('PEFT')
  },
)

it.each([[['embed_tokens']], [['q_proj', 'embed_tokens']], ['.*(q_proj|embed_tokens)']])(
  'embeddings among the targets are trained, run in a session and are trained further: %s',
  async (targetModules) => {
    const out = new MemoryDirectory()
    const { adapter } = await trainTiny({ model, data, out, config: { targetModules } })
    const name = 'model.embed_tokens'
    const [embedding] = adapter.parts('embedding')
    expect(embedding.name).toBe(name)
    expect(adapter.size).toBe(targetModules.includes('q_proj') ? 3 : 1)
    // A begins at 0, as in PEFT, and only rows of tokens in the data are learned.
    const isLearned = Array.from(embedding.weightA.data).filter((value) => value !== 0).length
    expect(isLearned).toBeGreaterThan(50)
    expect(isLearned).toBeLessThan(embedding.weightA.data.length)
    const saved = await loadAdapter(out)
    expect([...saved.parts('embedding')[0].weightB.data]).toEqual([...embedding.weightB.data])
    const session = await ModelSession.open(model, { adapters: { saved } })
    const feeds = feedsOf(model, [[5, 17, 40]])
    const [base, adapted] = [
      await session.run(feeds, { adapter: null }),
      await session.run(feeds, { adapter: 'saved' }),
    ]
    expect(maxDifference(base.logits, adapted.logits)).toBeGreaterThan(1e-3)
    await session.dispose()
    const again = await trainTiny({ model, data, adapter: saved, maxSteps: 1 })
    expect(again.adapter.names().sort()).toEqual(adapter.names().sort())
  },
)

it('DoRA of embeddings is refused', async () => {
  const config = { targetModules: ['q_proj', 'embed_tokens'], useDora: true }
  await expect(trainTiny({ model, data, config })).rejects.toThrow(/DoRA of an embedding cannot be trained/)
})

it('embeddings that are excluded are no targets', async () => {
  const config = { targetModules: '.*(q_proj|embed_tokens)', excludeModules: ['embed_tokens'] }
  const { adapter } = await trainTiny({ model, maxSteps: 1, config })
  expect(adapter.names().every((name) => name.endsWith('q_proj'))).toBe(true)
})
