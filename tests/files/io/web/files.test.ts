import { describe, expect, test } from 'vitest'
import { BlobSource } from '../../../../src/files/io/web/files.js'

const bytes = Uint8Array.from({ length: 1000 }, (_, i) => i * 3)

describe('BlobSource', () => {
  test('reads slices', async () => {
    const source = new BlobSource(new Blob([bytes]), 'picked')
    expect(source.byteLength).toBe(1000)
    expect(await source.read(10, 5)).toEqual(bytes.subarray(10, 15))
    await expect(source.read(999, 2)).rejects.toThrow(/picked: read past the end/)
  })

  test("a File's name is its own", () => {
    expect(new BlobSource(new File([bytes], 'a.safetensors')).name).toBe('a.safetensors')
  })
})
