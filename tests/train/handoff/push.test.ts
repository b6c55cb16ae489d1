// Pushes adapters to a local server with the Hub's routes, which keeps the files. scripts/golden/check_push.py reads
// such files with huggingface_hub and PEFT.

import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { configureHub, loadAdapter, saveAdapter, train } from 'lowrank'
import { push } from 'lowrank/handoff'
import { afterAll, afterEach, beforeAll, describe, expect, it } from 'vitest'
import { startHub } from '../../../scripts/golden/hub_to_push.mjs'
import { goldenPath } from '../../golden.js'

let hub: Awaited<ReturnType<typeof startHub>>
let scratch: string
const folder = () => join(scratch, 'adapter')

beforeAll(async () => {
  hub = await startHub()
  scratch = mkdtempSync(join(tmpdir(), 'push-'))
  await saveAdapter(await loadAdapter(goldenPath('peft', 'f32')), folder())
  writeFileSync(join(folder(), 'notes.txt'), 'mine')
  configureHub({ endpoint: hub.endpoint, token: 'hf_test' })
})
afterEach(() => void hub.reset())
afterAll(async () => {
  configureHub({ endpoint: undefined, token: undefined })
  await hub.close()
  rmSync(scratch, { recursive: true })
})

describe('push', () => {
  it('makes a private repository and sends the adapter’s own files', async () => {
    const report = await push(folder(), 'me/sea')
    expect(report.url).toBe(`${hub.endpoint}/me/sea`)
    expect(hub.repositories.get('me/sea')).toMatchObject({ visibility: 'private' })
    const { files } = hub.repositories.get('me/sea')!
    expect([...files.keys()].sort()).toEqual(['adapter_config.json', 'adapter_model.safetensors'])
    expect(report.files).toEqual([...files.keys()].sort())
    expect(hub.uploads).toBe(1)
  })

  it('does not send large files again that arrived before a push broke', async () => {
    hub.failCommits = 1
    await expect(push(folder(), 'me/sea')).rejects.toThrow(/me\/sea: the Hub did not take it .*Run the same command/)
    await push(folder(), 'me/sea', { public: true })
    expect(hub.uploads).toBe(1)
    expect(hub.repositories.get('me/sea')!.files.size).toBe(2)
  })

  it('says what a token lacks, and that there is none', async () => {
    hub.refuses = true
    await expect(push(folder(), 'me/sea')).rejects.toThrow('the right to write')
    configureHub({ token: undefined })
    process.env.HF_TOKEN_PATH = join(scratch, 'no-token')
    await expect(push(folder(), 'me/sea')).rejects.toThrow('hf auth login')
    delete process.env.HF_TOKEN_PATH
    configureHub({ token: 'mine' })
    await expect(push(folder(), 'me/sea')).rejects.toThrow('token: not one of the Hub, which begin with hf_')
    configureHub({ token: 'hf_test' })
    process.env.HF_HUB_OFFLINE = '1'
    await expect(push(folder(), 'me/sea')).rejects.toThrow('HF_HUB_OFFLINE: it is set')
    delete process.env.HF_HUB_OFFLINE
  })

  it('refuses an adapter of another base by its digest, and what is no adapter', async () => {
    const data = [{ text: 'The sea was calm.' }]
    const out = join(scratch, 'trained')
    await train({ model: 'models/union-3m', data, config: { rank: 1, targetModules: ['q_proj'] }, maxSteps: 1, out })
    await push(out, 'me/own', { base: 'models/union-3m' })
    expect([...hub.repositories.get('me/own')!.files.keys()]).toContain('lowrank.json')
    await expect(push(out, 'me/own', { base: goldenPath('models', 'llama-optimum') })).rejects.toThrow('another base')
    await expect(push('models/union-3m', 'me/model')).rejects.toThrow('adapter_config.json')
    await expect(push(out, 'sea')).rejects.toThrow('owner/name')
  })
})
