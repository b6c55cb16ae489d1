import { describe, expect, test } from 'vitest'
import { ConfigError } from '../../../src/api/node.js'
import { parseSource } from '../../../src/files/io/source.js'

/** The paths that exist for these tests. */
const LOCAL = ['models', 'models/union-3m', 'org2/model', 'gpt2-local']
const inNode = (text: string) => parseSource(text, { where: 'model', exists: (path) => LOCAL.includes(path) })
const inBrowser = (text: string) => parseSource(text, { where: 'model' })

const hub = (id: string, revision = 'main', path = '') => ({ kind: 'hub', id, revision, path })
const path = (text: string) => ({ kind: 'path', path: text })

describe('parseSource', () => {
  test.each([
    ['org/name', hub('org/name')],
    ['org/name@v1.0', hub('org/name', 'v1.0')],
    ['HuggingFaceTB/SmolLM2-135M-Instruct', hub('HuggingFaceTB/SmolLM2-135M-Instruct')],
    ['hf:org/name', hub('org/name')],
    ['hf://org/name', hub('org/name')],
    ['hf:gpt2', hub('gpt2')],
    ['hf:gpt2@main', hub('gpt2')],
    ['hf:org/name@v1/onnx', hub('org/name', 'v1', 'onnx')],
    ['hf:org/name@refs/pr/7/sub/folder', hub('org/name', 'refs/pr/7', 'sub/folder')],
    ['hf:org/name@feature%2Fx/sub', hub('org/name', 'feature/x', 'sub')],
    ['hf:org/name/onnx/model.onnx', hub('org/name', 'main', 'onnx/model.onnx')],
    ['hf:org2/model', hub('org2/model')],
    ['https://huggingface.co/org/name', hub('org/name')],
    ['https://huggingface.co/org/name/', hub('org/name')],
    ['https://hf.co/org/name/tree/main/onnx', hub('org/name', 'main', 'onnx')],
    ['https://huggingface.co/org/name/resolve/v2/a%20b/model.onnx', hub('org/name', 'v2', 'a b/model.onnx')],
    ['https://example.com/models/x/', { kind: 'url', url: 'https://example.com/models/x/' }],
    ['http://localhost:8080/x', { kind: 'url', url: 'http://localhost:8080/x' }],
  ])('%s, in Node and in a browser', (text, expected) => {
    expect(inNode(text)).toEqual(expected)
    expect(inBrowser(text)).toEqual(expected)
  })

  test('the scheme of an extension or of Electron, from its own page alone', () => {
    for (const url of ['chrome-extension://abc/model/', 'moz-extension://abc/model/', 'app://page/model/']) {
      const { protocol } = new URL(url)
      expect(parseSource(url, { where: 'model', scheme: protocol })).toEqual({ kind: 'url', url })
      for (const scheme of [undefined, 'https:', 'file:'])
        expect(() => parseSource(url, { where: 'model', scheme })).toThrow(/an address of a kind that is not used here/)
    }
    expect(() => parseSource('file:///model', { where: 'model', scheme: 'file:' })).toThrow(/is not used here, file:/)
  })

  test.each([
    './org/name',
    '../org/name',
    '.',
    '..',
    '/org/name',
    'C:\\models\\x',
    'c:/models/x',
    '\\\\server\\share',
    'models/union-3m',
    'models/missing',
    'org2/model',
    'gpt2-local',
    'gpt2',
    'models/union-3m/onnx/model.onnx',
    'org/name/onnx',
    'org/na me',
    'a file.onnx',
  ])('%s is a path, which no browser opens', (text) => {
    expect(inNode(text)).toEqual(path(text))
    if (['models/union-3m', 'models/missing', 'org2/model'].includes(text)) return
    expect(() => inBrowser(text)).toThrow(/^model: a path, and browsers cannot open paths; expected org\/name/)
  })

  test('reads the addresses of a Hub of one’s own', () => {
    const rules = { where: 'base', endpoint: 'https://mirror.example/hub' }
    expect(parseSource('https://mirror.example/hub/org/name/tree/v1/onnx', rules)).toEqual(
      hub('org/name', 'v1', 'onnx'),
    )
    expect(parseSource('https://mirror.example/other/x', rules)).toMatchObject({ kind: 'url' })
  })

  test.each([
    '',
    '  ',
    'hf:',
    'hf:/name',
    'hf:org/../x',
    'hf:org/name/../../x',
    'hf:org/name/a//b',
    'hf:org/name@',
    'hf:org/name@..',
    'hf:org/name@%2e%2e',
    'hf:org/name@a%2F..%2Fb',
    'hf:org/name@-x',
    'hf:org/a--b',
    'hf:org/name.git',
    'hf:datasets/org',
    `hf:org/${'n'.repeat(200)}`,
    'https://',
    'ftp://example.com/x',
    'file:///etc/passwd',
  ])('%s is nothing', (text) => {
    for (const parse of [inNode, inBrowser]) {
      expect(() => parse(text)).toThrow(ConfigError)
      expect(() => parse(text)).toThrow(/^model: /)
    }
  })

  test('does not repeat a password', () => {
    const refused = () => inNode('https://me:secret@example.com/x')
    expect(refused).toThrow(/^model: a name or a password in a URL/)
    expect(refused).not.toThrow(/secret/)
  })

  test('names the argument when a caller gives something else', () => {
    for (const value of [undefined, null, 7, {}]) {
      expect(() => inNode(value as unknown as string)).toThrow(/^model: names nothing; expected a path, org\/name/)
    }
  })
})
