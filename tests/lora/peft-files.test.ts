// Which files of a folder are read: adapter_model.bin as PEFT's save_pretrained(safe_serialization=False) writes it.

import { readFileSync } from 'node:fs'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { describe, expect, test } from 'vitest'
import { MemoryDirectory } from '../../src/base/bytes.js'
import { LowrankError } from '../../src/base/errors.js'
import { NodeDirectory } from '../../src/io/node-files.js'
import { loadAdapter, saveAdapter } from '../../src/lora/peft.js'
import { mergeCheckpoint } from '../../src/merge/checkpoint/merge-checkpoint.js'

const golden = fileURLToPath(new URL('../golden', import.meta.url))
const torchFolder = (name: string) => path.join(golden, 'torch', 'adapters', name)
const safeFolder = (name: string) => path.join(golden, 'kinds', name)

/** all-together is in the format before torch 1.6. */
describe.each(['linear', 'all-together', 'embedding'])('adapter_model.bin of %s', (name) => {
  test('loads as its safetensors file does, and is saved as that', async () => {
    const [fromTorch, fromSafe] = [new MemoryDirectory(), new MemoryDirectory()]
    await saveAdapter(await loadAdapter(new NodeDirectory(torchFolder(name))), fromTorch)
    await saveAdapter(await loadAdapter(new NodeDirectory(safeFolder(name))), fromSafe)
    expect([...fromTorch.files.keys()]).toEqual(['adapter_model.safetensors', 'adapter_config.json'])
    const weights = 'adapter_model.safetensors'
    expect(fromTorch.files.get(weights)).toEqual(fromSafe.files.get(weights))
  })

  test('merges into a checkpoint as its safetensors file does', async () => {
    const base = new MemoryDirectory({
      'model.safetensors': new Uint8Array(readFileSync(path.join(golden, 'kinds', 'qwen2.safetensors'))),
    })
    const [fromTorch, fromSafe] = [new MemoryDirectory(), new MemoryDirectory()]
    await mergeCheckpoint(base, new NodeDirectory(torchFolder(name)), fromTorch)
    await mergeCheckpoint(base, new NodeDirectory(safeFolder(name)), fromSafe)
    expect(fromTorch.files.get('model.safetensors')).toEqual(fromSafe.files.get('model.safetensors'))
  })
})

describe('two files', () => {
  const files = (folder: string, names: string[]) =>
    Object.fromEntries(names.map((name) => [name, new Uint8Array(readFileSync(path.join(folder, name)))]))

  test('the safetensors file is read, as in PEFT, and the other one is not even opened', async () => {
    const directory = new MemoryDirectory({
      ...files(safeFolder('linear'), ['adapter_config.json', 'adapter_model.safetensors']),
      'adapter_model.bin': 'damaged',
    })
    expect((await loadAdapter(directory)).size).toBe(6)
    directory.files.delete('adapter_model.safetensors')
    const error = await loadAdapter(directory).catch((reason) => reason)
    expect(error).toBeInstanceOf(LowrankError)
    expect(error.message).toMatch(/^memory\/adapter_model\.bin: not a file by torch\.save/)
  })
})
