import { expect, it } from 'vitest'
import { ConfigError } from '../../src/base/errors.js'
import { webRuntime } from '../../src/index/web-runtime.js'

it('takes the URL of a bundle', () => {
  expect(webRuntime('https://example.org/ort.mjs')).toMatchObject({ specifier: 'https://example.org/ort.mjs' })
})

it('says when a URL is none, or relative where there is no page', () => {
  for (const url of ['/ort.mjs', 'https://', '']) {
    expect(() => webRuntime(url)).toThrow(ConfigError)
    expect(() => webRuntime(url)).toThrow(/^url: .*got "/)
  }
})
