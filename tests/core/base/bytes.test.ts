import { describe, expect, it } from 'vitest'
import { MemoryDirectory } from '../../../src/api/node.js'
import { readAll, writeFile } from '../../../src/core/base/bytes.js'

describe('MemoryDirectory', () => {
  it('keeps what was written, whatever becomes of the writer’s Buffer', async () => {
    const directory = new MemoryDirectory()
    const buffer = Buffer.from('written')
    const sink = await directory.create('a')
    await sink.write(buffer)
    buffer.fill(0)
    await sink.commit()
    expect(new TextDecoder().decode(await readAll(await directory.open('a')))).toBe('written')
  })

  it('has files called like members of objects', async () => {
    const directory = new MemoryDirectory()
    expect(await directory.has('__proto__')).toBe(false)
    await writeFile(directory, '__proto__', 'text')
    expect(await directory.list()).toEqual(['__proto__'])
  })
})
