import { closeSync, openSync, readFileSync, writeSync } from 'node:fs'
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { afterAll, beforeAll, expect, it } from 'vitest'
import { FileError } from '../../../src/base/errors.js'
import { Flusher } from '../../../src/merge/node/flush.js'

let scratch: string
beforeAll(async () => {
  scratch = await mkdtemp(path.join(tmpdir(), 'lowrank-'))
})
afterAll(() => rm(scratch, { recursive: true }))

function openFile(name: string) {
  const file = path.join(scratch, name)
  return { name: file, fd: openSync(file, 'w') }
}

it('sends a file while it is being written to', async () => {
  const file = openFile('growing')
  const flusher = new Flusher()
  for (let i = 0; i < 100; i++) {
    writeSync(file.fd, 'x')
    flusher.send(file)
    if (i % 10 === 0) await flusher.end()
  }
  await flusher.finish(file)
  closeSync(file.fd)
  expect(readFileSync(file.name, 'utf8')).toBe('x'.repeat(100))
})

it('tells at the end what could not be sent before', async () => {
  const [lost, good] = [openFile('lost'), openFile('good')]
  closeSync(lost.fd)
  const flusher = new Flusher()
  flusher.send(lost)
  await flusher.end()
  const failure = flusher.finish(good)
  await expect(failure).rejects.toThrow(FileError)
  await expect(failure).rejects.toThrow(/lost: cannot be written/)
  closeSync(good.fd)
})
