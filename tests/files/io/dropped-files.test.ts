// A file that nobody closes is closed when its source is collected, without a warning of Node.

import { fstatSync } from 'node:fs'
import { setFlagsFromString } from 'node:v8'
import { runInNewContext } from 'node:vm'
import { expect, it } from 'vitest'
import { openFile } from '../../../src/files/io/node/files.js'

it('closes files that a program drops, and says nothing', async () => {
  setFlagsFromString('--expose-gc')
  const collect: () => void = runInNewContext('gc')
  const warnings: string[] = []
  const onWarning = ({ message }: Error) => void warnings.push(message)
  process.on('warning', onWarning)
  const drop = async () => (await openFile('package.json')).fd!
  const isOpen = (fd: number) => {
    try {
      return fstatSync(fd) !== undefined
    } catch {
      return false
    }
  }
  const dropped = await Promise.all([drop(), drop()])
  const kept = await openFile('package.json')
  await expect
    .poll(() => {
      collect()
      return dropped.some(isOpen)
    })
    .toBe(false)
  expect((await kept.read(0, 1))[0]).toBe('{'.charCodeAt(0))
  await kept.close()
  await new Promise((resolve) => setTimeout(resolve, 20))
  process.off('warning', onWarning)
  expect(warnings.filter((message) => /garbage collection|FileHandle/.test(message))).toEqual([])
})
