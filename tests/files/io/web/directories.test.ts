// Folders of browsers, tested in Node: picked files, streams, and a stand-in for the File System API whose writes can
// fail. tests/merge/chunks/browser.slow.test.ts tests the real API in Chromium.

import { describe, expect, test } from 'vitest'
import {
  FileError,
  FilesDirectory,
  type HandleDirectory,
  LoraAdapter,
  loadAdapter,
  StreamDirectory,
  saveAdapter,
} from '../../../../src/api/node.js'
import { readAll, writeFile } from '../../../../src/core/base/bytes.js'
import { handles } from './fake-folder.js'

function picked(path: string, content: string): File {
  const file = new File([content], path.slice(path.lastIndexOf('/') + 1))
  if (path.includes('/')) Object.defineProperty(file, 'webkitRelativePath', { value: path })
  return file
}

async function textIn(directory: { open(path: string): ReturnType<HandleDirectory['open']> }, path: string) {
  return new TextDecoder().decode(await readAll(await directory.open(path)))
}

describe('FilesDirectory', () => {
  test('has the files of a folder by their paths in it', async () => {
    const files = [picked('llama/b.json', 'B'), picked('llama/a.json', 'A'), picked('llama/onnx/model.onnx', 'O')]
    const directory = new FilesDirectory(files)
    expect(directory.name).toBe('llama')
    expect(await directory.list()).toEqual(['a.json', 'b.json'])
    expect(await directory.folders()).toEqual(['onnx'])
    expect(await directory.has('onnx/model.onnx')).toBe(true)
    expect(await textIn(directory, 'onnx/model.onnx')).toBe('O')
    expect((await directory.open('a.json')).name).toBe('llama/a.json')
    await expect(directory.open('c.json')).rejects.toThrow(/llama\/c\.json: no such file/)
  })

  test('has single files by their names, and cannot be written', async () => {
    const directory = new FilesDirectory([picked('a.json', 'A')])
    expect(await directory.list()).toEqual(['a.json'])
    await expect(directory.create('a.json')).rejects.toThrow(FileError)
    await expect(directory.remove('a.json')).rejects.toThrow(/cannot be written/)
    expect(await textIn(directory, 'a.json')).toBe('A')
  })
})

describe('HandleDirectory', () => {
  test('writes, lists, reads and removes files, in inner folders too', async () => {
    const { directory } = handles()
    expect(directory.name).toBe('opfs')
    await writeFile(directory, 'b', 'B')
    await writeFile(directory, 'inner/a', 'A')
    expect([await directory.list(), await directory.folders()]).toEqual([['b'], ['inner']])
    expect([await directory.has('inner/a'), await directory.has('inner'), await directory.has('x/y')]).toEqual([
      true,
      false,
      false,
    ])
    expect(await textIn(directory, 'inner/a')).toBe('A')
    await directory.remove('inner/a')
    await directory.remove('inner/a')
    expect(await directory.has('inner/a')).toBe(false)
    await expect(directory.open('inner/a')).rejects.toThrow(/opfs\/inner\/a: cannot be read: no such file/)
    await expect(directory.open('b/c')).rejects.toThrow(/it is a folder where a file is expected, or the other way/)
  })

  test('a file that is dropped is gone, or as it was', async () => {
    const { directory } = handles()
    await writeFile(directory, 'old', 'as it was')
    for (const name of ['old', 'new']) {
      const sink = await directory.create(name)
      await sink.write(Uint8Array.of(1))
      await sink.abort()
      await sink.abort()
    }
    expect(await directory.list()).toEqual(['old'])
    expect(await textIn(directory, 'old')).toBe('as it was')
  })

  test('a full quota is an error of its own', async () => {
    const { directory, folder } = handles()
    folder.quota = 3
    await expect(writeFile(directory, 'x', 'long')).rejects.toMatchObject({
      code: 'FILE',
      where: 'opfs/x',
      what: 'cannot be written: no space left in what the browser grants',
    })
    expect(await directory.list()).toEqual([])
  })

  test.each(['../x', '/x', 'a//b', 'a\\b', 'C:x', ''])('no name leads out: %j', async (name) => {
    const { directory, folder } = handles()
    for (const use of [() => directory.open(name), () => directory.has(name), () => directory.create(name)]) {
      await expect(use()).rejects.toThrow(/leads out of the folder or nowhere/)
    }
    expect(folder.children.size).toBe(0)
  })
})

describe('StreamDirectory', () => {
  test('gives streams bytes of their own, and closes them when all is complete', async () => {
    const received: Uint8Array[] = []
    let state = 'open'
    const stream = new WritableStream<Uint8Array>({
      write: (bytes) => void received.push(bytes),
      close: () => {
        state = 'closed'
      },
      abort: () => {
        state = 'aborted'
      },
    })
    const directory = new StreamDirectory((path) => (path === 'x' ? stream : undefined))
    const sink = await directory.create('x')
    const memory = Uint8Array.of(1, 2)
    await sink.write(memory)
    memory.fill(9)
    await writeFile(directory, 'dropped', 'nothing of this')
    expect(state).toBe('open')
    await sink.commit()
    expect(received).toEqual([Uint8Array.of(1, 2)])
    expect(state).toBe('closed')
    await sink.abort()
    expect([await directory.list(), await directory.has()]).toEqual([[], false])
  })

  test('aborts streams, and says which broke', async () => {
    let state = 'open'
    const aborted = new StreamDirectory(
      () =>
        new WritableStream({
          abort: () => {
            state = 'aborted'
          },
        }),
    )
    await (await aborted.create('x')).abort()
    expect(state).toBe('aborted')
    const broken = new StreamDirectory(
      () => new WritableStream({ write: () => Promise.reject(new Error('the connection broke')) }),
    )
    await expect(writeFile(broken, 'x', 'y')).rejects.toMatchObject({
      code: 'FILE',
      where: 'streams/x',
      what: 'cannot be written: the connection broke',
    })
  })
})

test('a folder of the File System API takes an adapter, the same again, and another one', async () => {
  const { directory } = handles()
  for (const rank of [2, 2, 4]) {
    const adapter = new LoraAdapter({ rank, alpha: 4, targetModules: ['q_proj'] })
    adapter.addLayerOfShape('model.layers.0.self_attn.q_proj', [6, 5])
    await saveAdapter(adapter, directory)
    expect((await loadAdapter(directory)).config.rank).toBe(rank)
    expect(await directory.list()).toEqual(['adapter_config.json', 'adapter_model.safetensors'])
  }
})
