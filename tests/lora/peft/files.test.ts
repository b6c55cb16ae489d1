// The files of a folder that are read.

import { readFileSync } from 'node:fs'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { describe, expect, test } from 'vitest'
import { MemoryDirectory } from '../../../src/core/base/bytes.js'
import { UnsupportedError } from '../../../src/core/base/errors.js'
import { NodeDirectory } from '../../../src/files/io/node/files.js'
import { loadAdapter } from '../../../src/lora/peft/adapter-folder.js'

const golden = fileURLToPath(new URL('../../golden', import.meta.url))
const safeFolder = (name: string) => path.join(golden, 'kinds', name)

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
    expect(error).toBeInstanceOf(UnsupportedError)
    expect(error.message).toMatch(/^memory\/adapter_model\.bin: a pickle, .* is never read/)
    // The line of Python in the message is not cut.
    expect(error.message).toMatch(/import torch, .*'adapter_model\.bin'.*'adapter_model\.safetensors'\)$/)
  })
})

describe('adapters in folders of their names', () => {
  const files = (prefix: string, folder: string): [string, Uint8Array][] =>
    ['adapter_config.json', 'adapter_model.safetensors'].map((name) => [
      prefix + name,
      new Uint8Array(readFileSync(path.join(folder, name))),
    ])
  const [linear, dora] = [safeFolder('linear'), safeFolder('dora')]
  const directoryOf = (...entries: [string, Uint8Array][]) => new MemoryDirectory(Object.fromEntries(entries), 'out')

  test('the only one inside is taken', async () => {
    const directory = directoryOf(...files('mine/', linear), ['logs/events.txt', new Uint8Array()])
    const adapter = await loadAdapter(directory)
    expect(adapter.size).toBe(6)
    expect(adapter.notes).toEqual(['an adapter in mine/, its only one'])
    expect((await loadAdapter(directory, { name: 'mine' })).notes).toEqual([])
  })

  test('several must be named', async () => {
    const directory = directoryOf(...files('mine/', linear), ...files('yours/', dora))
    await expect(loadAdapter(directory)).rejects.toThrow(
      'out: no adapter_config.json, but several adapters in folders of their own; expected one of mine, yours. Name one, or its folder',
    )
    expect((await loadAdapter(directory, { name: 'yours' })).config.useDora).toBe(true)
    await expect(loadAdapter(directory, { name: 'ours' })).rejects.toThrow(
      'out: no adapter named ours; expected one of mine, yours',
    )
    for (const name of ['..', '../mine', '/mine', 'mine/', '']) {
      await expect(loadAdapter(directory, { name })).rejects.toThrow(/no adapter named/)
    }
  })

  test('the folder’s own comes first, and a name means one inside', async () => {
    const directory = directoryOf(...files('', linear), ...files('yours/', dora))
    expect((await loadAdapter(directory)).config.useDora).toBe(false)
    expect((await loadAdapter(directory, { name: 'default' })).config.useDora).toBe(false)
    expect((await loadAdapter(directory, { name: 'yours' })).config.useDora).toBe(true)
  })

  test('in the file system, and without a listing of folders by name alone', async () => {
    expect((await loadAdapter(new NodeDirectory(path.join(golden, 'kinds')), { name: 'linear' })).size).toBe(6)
    await expect(loadAdapter(new NodeDirectory(path.join(golden, 'kinds')))).rejects.toThrow(
      /several adapters in folders of their own; expected one of all-together, bias-all/,
    )
    await expect(loadAdapter(new NodeDirectory(path.join(golden, 'missing')))).rejects.toThrow(/not an adapter folder/)
    const { open, has, list, create, remove, name } = directoryOf(...files('mine/', linear))
    const directory = directoryOf(...files('mine/', linear))
    const bound = { name, open: open.bind(directory), has: has.bind(directory), list: list.bind(directory) }
    const limited = { ...bound, create: create.bind(directory), remove: remove.bind(directory) }
    expect((await loadAdapter(limited, { name: 'mine' })).size).toBe(6)
    await expect(loadAdapter(limited)).rejects.toThrow(/not an adapter folder/)
  })
})
