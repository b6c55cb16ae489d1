// Blocks of GGUF files against gguf-py (scripts/golden/gguf_blocks.py).

import { readFileSync } from 'node:fs'
import { describe, expect, it } from 'vitest'
import type { BlockDtype } from '../../../src/core/base/dtype.js'
import { canEncode, decodeStored, encodeStored } from '../../../src/files/gguf/blocks.js'
import { goldenPath } from '../../golden.js'

const { values, types } = JSON.parse(readFileSync(goldenPath('gguf-merge', 'blocks.json'), 'utf8')) as {
  values: string
  types: Record<BlockDtype, { blocks: string; means: string; written?: string }>
}
const bytesOf = (text: string) => new Uint8Array(Buffer.from(text, 'base64'))
const floatsOf = (text: string) => new Float32Array(bytesOf(text).buffer)

describe.each(Object.entries(types))('%s', (name, { blocks, means, written }) => {
  const dtype = name as BlockDtype

  it('means what gguf-py reads', () => {
    expect(decodeStored(bytesOf(blocks), dtype)).toEqual(floatsOf(means))
  })

  it('is written as by gguf-py, or not at all', () => {
    expect(canEncode(dtype)).toBe(written !== undefined)
    if (written !== undefined) expect(encodeStored(floatsOf(values), dtype)).toEqual(bytesOf(written))
  })
})
