// The package as users get it: packed, and installed outside the repository in a folder whose name needs escaping in
// URLs.

import { execFileSync } from 'node:child_process'
import { accessSync, constants, readFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import { join } from 'node:path'
import { gzipSync } from 'node:zlib'
import { build, type Rolldown } from 'vite'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { type Consumer, installConsumer, link, repository } from './consumer.js'

const MAX_CORE_GZIP_BYTES = 49_000
const MAX_VALUES = 45

let consumer: Consumer
beforeAll(() => {
  consumer = installConsumer('a project #1 at 100%')
})
afterAll(() => consumer?.remove())

describe('the tarball', () => {
  it('holds the build, the texts and the examples, nothing else', () => {
    const isWanted = /^(dist\/.*(\.js|\.d\.ts)|docs\/[^/]*\.(md|png)|examples\/[^/]*\.(mjs|onnx))$/
    expect(consumer.packed).toEqual(
      expect.arrayContaining(['dist/browser.js', 'docs/training.md', 'examples/train.mjs']),
    )
    const other = consumer.packed.filter((path) => !isWanted.test(path))
    expect(other.sort()).toEqual(['CHANGELOG.md', 'LICENSE', 'README.md', 'package.json'])
  })

  it('has what package.json names, types first', () => {
    const { exports, bin } = JSON.parse(readFileSync(join(repository, 'package.json'), 'utf8'))
    expect(Object.keys(exports['.'])).toEqual(['types', 'node', 'default'])
    for (const name of ['.', './handoff', './onnx']) {
      for (const path of Object.values<string>(exports[name])) expect(consumer.packed).toContain(path.slice(2))
    }
    expect(readFileSync(join(repository, bin.lowrank), 'utf8')).toMatch(/^#!\/usr\/bin\/env node\n/)
    accessSync(join(repository, bin.lowrank), constants.X_OK)
  })
})

describe('in Node', () => {
  it(`has one entry of at most ${MAX_VALUES} values, the same as in browsers, and shares its classes with lowrank/handoff`, () => {
    consumer.write(
      'entries.mjs',
      `import * as node from 'lowrank'
       import { handoff } from 'lowrank/handoff'
       const browser = await import(new URL('index.js', import.meta.resolve('lowrank')))
       const refused = await handoff({}).catch((error) => error)
       console.log(JSON.stringify({
         node: Object.keys(node),
         different: Object.keys(browser).filter((name) => browser[name] !== node[name]),
         isOneClass: refused instanceof node.LowrankError,
       }))`,
    )
    const { stdout, stderr } = consumer.node('entries.mjs')
    expect(stderr).toBe('')
    const { node, different, isOneClass } = JSON.parse(stdout)
    expect(node.length).toBeLessThanOrEqual(MAX_VALUES)
    expect(node).toEqual(
      expect.arrayContaining(['LoraLayer', 'LoraAdapter', 'train', 'openSession', 'merge', 'toPlain']),
    )
    expect(different).toEqual([])
    expect(isOneClass).toBe(true)
  })

  it('lets CommonJS require the entry', () => {
    consumer.write(
      'entries.cjs',
      `console.log(typeof require('lowrank').LoraLayer, typeof require('lowrank').loadAdapter)`,
    )
    expect(consumer.node('entries.cjs').stdout).toBe('function function\n')
  })

  it('runs the binary', () => {
    const binary = join(
      consumer.folder,
      'node_modules',
      '.bin',
      process.platform === 'win32' ? 'lowrank.cmd' : 'lowrank',
    )
    const { version } = JSON.parse(readFileSync(join(repository, 'package.json'), 'utf8'))
    expect(execFileSync(binary, ['--version'], { encoding: 'utf8', shell: process.platform === 'win32' })).toBe(
      `${version}\n`,
    )
  })
})

describe('with ONNX Runtime', () => {
  const model = JSON.stringify(join(repository, 'models', 'union-3m'))

  it('says how to install it where it is missing', () => {
    const { status, stderr } = consumer.node(
      join('node_modules', 'lowrank', 'dist', 'app', 'cli', 'main.js'),
      ...['generate', '--model', join(repository, 'models', 'union-3m'), '--prompt', 'a'],
    )
    expect(stderr).toMatch(/^error: onnxruntime-node: it is not installed\. .*npm install onnxruntime-node/)
    expect(status).toBe(1)
  })

  it('trains one step in its worker, and ends', () => {
    link(consumer, 'onnxruntime-node')
    consumer.write(
      'train.mjs',
      `import { loadAdapter, train } from 'lowrank'
       const data = [{ text: 'Four score and seven years ago' }]
       const { report } = await train({ model: ${model}, data, maxSteps: 1, out: 'my adapter #1 at 50%' })
       const adapter = await loadAdapter('my adapter #1 at 50%')
       console.log(JSON.stringify({ ...report, layers: adapter.size }))`,
    )
    const { stdout, stderr, status } = consumer.node('train.mjs')
    expect(stderr).toBe('')
    expect(status).toBe(0)
    expect(JSON.parse(stdout)).toMatchObject({ steps: 1, trainLoss: [expect.any(Number)], layers: 42 })
  })

  it('runs in the calling thread with the module handed over', () => {
    consumer.write(
      'in-thread.mjs',
      `import * as ort from 'onnxruntime-node'
       import { loadModel, openSession } from 'lowrank'
       const model = await loadModel(${model}, { runtime: { module: ort } })
       const session = await openSession(model)
       console.log((await session.generate('The', { maxNewTokens: 3 })).tokens)
       await session.dispose()`,
    )
    const { stdout, stderr } = consumer.node('in-thread.mjs')
    expect(stderr).toBe('')
    expect(stdout).toBe('3\n')
  })
})

describe('the examples of lowrank/onnx', () => {
  it.each(['train-graph', 'jacobian'])('%s runs beside onnxruntime-node alone', (name) => {
    const empty = installConsumer('empty')
    try {
      link(empty, 'onnxruntime-node')
      const { stdout, stderr, status } = empty.node(`node_modules/lowrank/examples/${name}.mjs`)
      expect(stderr).toBe('')
      expect(status).toBe(0)
      expect(stdout.trim().split('\n').length).toBeGreaterThan(1)
    } finally {
      empty.remove()
    }
  })
})

describe('the types', () => {
  it('hold nothing that is marked as internal', () => {
    const declarations = consumer.packed.filter((path) => path.endsWith('.d.ts'))
    for (const path of declarations) expect(readFileSync(join(repository, path), 'utf8'), path).not.toMatch(/@internal/)
    const layer = readFileSync(join(repository, 'dist', 'lora', 'layer.d.ts'), 'utf8')
    expect(layer.match(/constructor\(.*/g)).toEqual([expect.stringMatching(/baseWeight: MatrixLike/)])
  })
})

// Compiles without the types of a host, with Node's types, and with the settings of a bundler's template. Declarations
// of packages are checked too.
describe.each([
  { moduleResolution: 'nodenext', lib: ['ES2022'], types: [] },
  { moduleResolution: 'nodenext', lib: ['ES2022'], types: ['node'] },
  { moduleResolution: 'bundler', lib: ['ES2022', 'DOM', 'DOM.Iterable'], types: [] },
])(
  'type-checking under moduleResolution $moduleResolution with $lib and $types',
  ({ moduleResolution, lib, types }) => {
    it('accepts right use and refuses wrong use', () => {
      const source = `consumer-${moduleResolution}.ts`
      consumer.write(source, TYPED_USE)
      const config = `tsconfig.${moduleResolution}.json`
      consumer.write(
        config,
        JSON.stringify({
          compilerOptions: {
            target: 'ES2022',
            lib,
            module: moduleResolution === 'nodenext' ? 'nodenext' : 'esnext',
            moduleResolution,
            strict: true,
            exactOptionalPropertyTypes: true,
            noEmit: true,
            skipLibCheck: false,
            types,
            typeRoots: [join(repository, 'node_modules', '@types')],
          },
          files: [source],
        }),
      )
      const tsc = createRequire(import.meta.url).resolve('typescript/bin/tsc')
      const { stdout, status } = consumer.node(tsc, '-p', config)
      expect(stdout).toBe('')
      expect(status).toBe(0)
    })
  },
)

const TYPED_USE = `
import { loadAdapter, LoraAdapter, LoraLayer, LowrankError, saveAdapter } from 'lowrank'
import { gradients } from 'lowrank/onnx'

const layer = new LoraLayer([[1, 2], [3, 4]], { rank: 1, alpha: 2 })
const output: { readonly data: Float32Array | Float64Array } = layer.forward([[1, 1]])
const counts: number = layer.trainableParams() + output.data.length
const adapter: Promise<LoraAdapter> = loadAdapter('folder')
await saveAdapter(await adapter, 'other')
try {
  layer.unmerge()
} catch (error) {
  if (error instanceof LowrankError && error.code === 'STATE') throw new Error(String(error.hint) + counts)
}
const { gradients: names, graph } = await gradients(new Uint8Array(), { of: 'loss', by: ['weight'] })
const named: string | undefined = names.weight ?? String(graph.byteLength)
// @ts-expect-error the value to differentiate is a name
gradients('model.onnx', { of: 1, by: [named] })
// @ts-expect-error a rank is a number
new LoraLayer([[1]], { rank: '1' })
`

describe('in the browser', () => {
  it(`bundles with Vite: no Node module, and at most ${MAX_CORE_GZIP_BYTES / 1000} kB gzipped`, async () => {
    const plain = installConsumer('plain')
    try {
      plain.write('index.html', '<script type="module" src="/main.js"></script>')
      // A script with everything that the entry exports, so that nothing is removed as unused.
      plain.write('main.js', `import * as lowrank from 'lowrank'\nglobalThis.lowrank = lowrank`)
      const result = await build({ root: plain.folder, logLevel: 'silent', configFile: false, build: { write: false } })
      const { output } = result as Rolldown.RolldownOutput
      const chunks = output.filter((item) => item.type === 'chunk')
      const scripts = output.filter((item) => /\.m?js$/.test(item.fileName))
      for (const script of scripts) {
        // The library for schemas is an optional peer that loads when it is used, and it contains code for Node.
        if (script.type === 'chunk' && script.moduleIds.some((id) => id.includes('@mlc-ai'))) continue
        const code = script.type === 'chunk' ? script.code : String(script.source)
        expect(
          /['"`]node:[a-z]|__vite-browser-external|onnxruntime-node/.exec(code)?.[0],
          script.fileName,
        ).toBeUndefined()
      }

      // The bundler finds the workers and writes a script for each.
      expect(output.filter(({ fileName }) => /worker-.*\.js$/.test(fileName))).toHaveLength(2)

      const entry = chunks.find(({ isEntry }) => isEntry)!
      const core = new Set([entry.fileName])
      for (const name of core)
        for (const next of chunks.find(({ fileName }) => fileName === name)!.imports) core.add(next)
      const code = chunks.filter(({ fileName }) => core.has(fileName)).map((chunk) => chunk.code)
      expect(gzipSync(code.join('\n')).byteLength).toBeLessThanOrEqual(MAX_CORE_GZIP_BYTES)

      // Names of classes are shortened, but names of errors stay.
      const names = Object.keys(await import('../../src/api/index.js')).filter((name) =>
        /^(?!Lowrank).*Error$/.test(name),
      )
      expect(names.length).toBeGreaterThan(5)
      expect(names.filter((name) => !new RegExp(`name\\s*=\\s*.${name}`).test(code.join('\n')))).toEqual([])
    } finally {
      plain.remove()
    }
  })
})
