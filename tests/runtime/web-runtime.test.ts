import { expect, it } from 'vitest'
import { ConfigError } from '../../src/base/errors.js'
import { webRuntime } from '../../src/index/platform/web-runtime.js'

it('takes the URLs of a bundle and its .wasm file', () => {
  const [specifier, wasm] = ['https://example.org/ort.mjs', 'https://example.org/ort-1a2b3c.wasm']
  expect(webRuntime(specifier)).toMatchObject({ specifier, wasm: undefined })
  expect(webRuntime(specifier, wasm)).toMatchObject({ specifier, wasm })
})

it('says when a URL is none, or relative where there is no page', () => {
  for (const url of ['/ort.mjs', 'https://', '']) {
    expect(() => webRuntime(url)).toThrow(ConfigError)
    expect(() => webRuntime(url)).toThrow(/^url: .*got "/)
    expect(() => webRuntime('https://example.org/ort.mjs', url)).toThrow(/^wasm: .*got "/)
  }
})
