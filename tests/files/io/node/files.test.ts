import { execFileSync } from 'node:child_process'
import {
  chmod,
  lstat,
  mkdir,
  mkdtemp,
  readdir,
  readFile,
  realpath,
  rm,
  symlink,
  truncate,
  writeFile,
} from 'node:fs/promises'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { afterEach, beforeEach, describe, expect, test } from 'vitest'
import { FileError } from '../../../../src/api/node.js'
import { writeFile as writeWhole } from '../../../../src/core/base/bytes.js'
import { locate, NodeDirectory, openFile } from '../../../../src/files/io/node/files.js'

let folder: string
let directory: NodeDirectory

beforeEach(async () => {
  folder = await mkdtemp(path.join(tmpdir(), 'lowrank-'))
  directory = new NodeDirectory(folder)
})

afterEach(async () => {
  await rm(folder, { recursive: true, force: true })
})

const at = (...parts: string[]) => path.join(folder, ...parts)
const createFile = (file: string) => new NodeDirectory(path.dirname(file)).create(path.basename(file))
const isRoot = process.getuid?.() === 0
const isWindows = process.platform === 'win32'

async function failure(promise: Promise<unknown>): Promise<FileError> {
  const error = await promise.then(
    () => undefined,
    (reason) => reason,
  )
  expect(error).toBeInstanceOf(FileError)
  return error
}

describe('reading', () => {
  test('any range, in any order, by many readers at once', async () => {
    const bytes = Uint8Array.from({ length: 10_000 }, (_, i) => i * 7)
    await writeFile(at('data'), bytes)
    const source = await directory.open('data')
    expect(source.byteLength).toBe(10_000)
    const ranges = [
      [9_999, 1],
      [0, 10_000],
      [500, 3],
      [10_000, 0],
    ]
    const results = await Promise.all(ranges.map(([offset, byteLength]) => source.read(offset, byteLength)))
    results.forEach((result, i) => {
      expect(result).toEqual(bytes.subarray(ranges[i][0], ranges[i][0] + ranges[i][1]))
    })
    await source.close()
  })

  test.each([
    [-1, 1],
    [0, 11],
    [11, 0],
    [5, -1],
  ])('a range outside the file: [%i, +%i)', async (offset, byteLength) => {
    await writeFile(at('data'), new Uint8Array(10))
    const source = await directory.open('data')
    expect((await failure(source.read(offset, byteLength))).message).toMatch(/data: read past the end/)
    await source.close()
  })

  test('realPath follows links, name stays as given', async () => {
    await writeFile(at('blob'), 'x')
    await symlink(at('blob'), at('link'))
    const source = await openFile(at('link'))
    expect(source.name).toBe(at('link'))
    expect(source.realPath).toBe(await realpath(at('blob')))
    await source.close()
  })

  test('a file that becomes shorter while it is open', async () => {
    await writeFile(at('data'), new Uint8Array(10))
    const source = await directory.open('data')
    await truncate(at('data'), 4)
    expect((await failure(source.read(0, 10))).message).toMatch(/became shorter/)
    await source.close()
  })

  test('what cannot be opened is named, with the reason', async () => {
    await mkdir(at('sub'))
    expect((await failure(directory.open('absent'))).message).toBe(`${at('absent')}: no such file or folder`)
    expect((await failure(directory.open('sub'))).message).toBe(`${at('sub')}: is a folder`)
    expect((await failure(openFile(at('sub', 'x', 'y')))).message).toBe(
      `${at('sub', 'x', 'y')}: no such file or folder`,
    )
  })

  test.skipIf(isRoot || isWindows)('a file without permission to read', async () => {
    await writeFile(at('secret'), 'x')
    await chmod(at('secret'), 0)
    const { message } = await failure(directory.open('secret'))
    expect(message).toContain(`${at('secret')}: cannot be read: permission denied. Choose a folder`)
  })
})

describe('writing', () => {
  test('nothing has the final name before commit, and nothing else is left after it', async () => {
    const sink = await directory.create('out')
    await sink.write(Uint8Array.of(1, 2))
    await sink.write(Uint8Array.of(3))
    expect(await directory.has('out')).toBe(false)
    await sink.commit()
    expect(await readFile(at('out'))).toEqual(Buffer.of(1, 2, 3))
    expect(await readdir(folder)).toEqual(['out'])
    await sink.abort()
    expect(await directory.has('out')).toBe(true)
  })

  test('the old file stays until commit, and for good after abort', async () => {
    await writeFile(at('out'), 'old')
    const sink = await directory.create('out')
    await sink.write(new TextEncoder().encode('new, but unfinished'))
    await sink.abort()
    expect(await readFile(at('out'), 'utf8')).toBe('old')
    expect(await readdir(folder)).toEqual(['out'])
    await writeWhole(directory, 'out', 'new')
    expect(await readFile(at('out'), 'utf8')).toBe('new')
  })

  test('folders are made as needed, and taken back by abort where they are new and empty', async () => {
    await mkdir(at('a'))
    const sink = await createFile(at('a', 'b', 'c', 'out'))
    await sink.write(Uint8Array.of(1))
    await sink.abort()
    expect(await readdir(at('a'))).toEqual([])
    await writeWhole(directory, 'x/y/out', 'text')
    expect(await readFile(at('x', 'y', 'out'), 'utf8')).toBe('text')
  })

  test('abort leaves a new folder in which something else is by now', async () => {
    const sink = await createFile(at('new', 'out'))
    await writeFile(at('new', 'other'), 'x')
    await sink.abort()
    expect(await readdir(at('new'))).toEqual(['other'])
  })

  test('a link is replaced by the file, its target is left alone', async () => {
    await writeFile(at('blob'), 'shared')
    await symlink(at('blob'), at('out'))
    await writeWhole(directory, 'out', 'mine')
    expect(await readFile(at('blob'), 'utf8')).toBe('shared')
    expect((await lstat(at('out'))).isSymbolicLink()).toBe(false)
  })

  test('where nothing can be written is named, and nothing is left', async () => {
    await mkdir(at('sub'))
    await writeFile(at('file'), 'x')
    expect((await failure(directory.create('sub'))).message).toBe(`${at('sub')}: is a folder`)
    expect((await failure(createFile(at('file', 'out')))).message).toMatch(/file.out: cannot be written: /)
    expect(await readdir(folder)).toEqual(['file', 'sub'])
  })

  test.skipIf(isRoot || isWindows)('a folder without permission to write', async () => {
    await mkdir(at('locked'), { mode: 0o500 })
    expect((await failure(createFile(at('locked', 'out')))).message).toMatch(/cannot be written: permission denied/)
  })

  test('a write after a failure does not make a file appear', async () => {
    const sink = await directory.create('out')
    await sink.abort()
    await failure(sink.write(Uint8Array.of(1)))
    await failure(sink.commit())
    expect(await readdir(folder)).toEqual([])
  })
})

describe('folders', () => {
  test('makes the parents that a file needs, also when others make them at the same time', async () => {
    const files = ['a/b/c/x', 'a/b/c/y', 'a/b/z']
    await Promise.all(files.map((file) => writeWhole(directory, file, file)))
    expect(await Promise.all(files.map((file) => readFile(at(file), 'utf8')))).toEqual(files)
  })

  // On such a file system mkdir answers ENOENT, and Node's recursive mkdir would try again for ever.
  test.skipIf(process.platform !== 'linux')('gives up where the file system takes no folders', async () => {
    expect((await failure(createFile('/proc/lowrank/a/x'))).message).toMatch(/cannot be made/)
  })

  test('list: files directly inside, sorted, links too but those to folders; a folder that does not exist is empty', async () => {
    await mkdir(at('sub'))
    await writeFile(at('sub', 'deep'), '')
    await writeFile(at('b'), '')
    await writeFile(at('a'), '')
    await symlink(at('sub', 'deep'), at('link'))
    await symlink(at('gone'), at('dangling'))
    expect(await directory.list()).toEqual(['a', 'b', 'dangling', 'link'])
    await failure(directory.open('dangling'))
    expect(await new NodeDirectory(at('absent')).list()).toEqual([])
    await failure(new NodeDirectory(at('a')).list())
  })

  test('has: files only, nested ones too', async () => {
    await mkdir(at('sub'))
    await writeFile(at('sub', 'x'), '')
    expect(await directory.has('sub/x')).toBe(true)
    expect(await directory.has('sub')).toBe(false)
    expect(await directory.has('sub/x/y')).toBe(false)
    expect(await directory.has('absent')).toBe(false)
  })

  test('remove: gone afterwards, and no error when it was not there', async () => {
    await writeFile(at('x'), '')
    await directory.remove('x')
    await directory.remove('x')
    expect(await directory.list()).toEqual([])
  })

  test.each(['../x', '/etc/passwd', 'a/../../x', '', 'a//b', './x', 'a\\..\\..\\x', 'x\0', 'C:x', 'a/c:/x'])(
    'no name leads out: %j',
    async (name) => {
      const uses: (() => Promise<unknown>)[] = [
        () => directory.open(name),
        () => directory.has(name),
        () => directory.create(name),
        () => directory.remove(name),
      ]
      for (const use of uses) expect((await failure(use())).message).toMatch(/leads out of the folder or nowhere/)
    },
  )

  test('locate tells folders from files', async () => {
    await writeFile(at('x.onnx'), '')
    expect(await locate(folder)).toMatchObject({ directory: { name: folder }, file: undefined })
    expect(await locate(at('x.onnx'))).toMatchObject({ directory: { name: folder }, file: 'x.onnx' })
    expect((await failure(locate(at('y.onnx')))).message).toBe(`${at('y.onnx')}: no such file or folder`)
    const hub = (await failure(locate('somebody/Some-Model-1.5B'))).message
    expect(hub).toMatch(
      /^somebody\/Some-Model-1\.5B: no such file or folder\. If somebody is a local folder, this name is a path\. For a model on the Hub, write hf:somebody\/Some-Model-1\.5B/,
    )
  })
})

test('append adds to a file, makes what is missing, and says why it cannot', async () => {
  const text = (value: string) => new TextEncoder().encode(value)
  await directory.append('a/log.jsonl', text('one\n'))
  await directory.append('a/log.jsonl', text('two\n'))
  expect(await readFile(at('a', 'log.jsonl'), 'utf8')).toBe('one\ntwo\n')
  expect((await failure(directory.append('a', text('x')))).message).toContain('is a folder')
  await failure(directory.append('../log.jsonl', text('x')))
})

test.skipIf(isWindows)('a pipe is refused instead of waited for', async () => {
  execFileSync('mkfifo', [at('pipe')])
  expect((await failure(openFile(at('pipe')))).message).toBe(`${at('pipe')}: is no file`)
})
