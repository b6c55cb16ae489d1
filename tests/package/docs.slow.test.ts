import { cpSync, existsSync, readdirSync, readFileSync, rmSync, symlinkSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it, vi } from 'vitest'
import { briefly, type Consumer, installConsumer, link, repository } from './consumer.js'

/** Pages of docs/ in the order in which they run. Later pages use files that earlier pages made. */
const PAGES = [
  'backend',
  'python',
  'first-adapter',
  'training',
  'training-records',
  'training-in-code',
  'trainer',
  'rewards',
  'data',
  'tasks',
  'models',
  'sessions',
  'adapters',
  'merging',
  'inspecting-adapters',
  'evaluating',
  'search',
  'tools',
  'formats',
  'handoff',
  'onnx',
]

/** Pages without a block that runs in Node. A server does not end, and transformers.js has separate tests. */
const UNRUN = [
  ...['commands', 'conformance', 'graphs', 'learning', 'migrating', 'reliability', 'serving', 'speed', 'stability'],
  ...['leaving-openai', 'openai-fine-tuning', 'training-in-browsers', 'transformers-js', 'web', 'words'],
]

/** The Hub models of the pages. The cache contains the bundled model under these names. */
const HUB_MODELS = ['HuggingFaceTB/SmolLM2-135M-Instruct']
const COMMIT = '0'.repeat(40)

const BINARY = 'node_modules/lowrank/dist/app/cli/main.js'

const pathOf = (page: string) => join(repository, page === 'README' ? '' : 'docs', `${page}.md`)
const blocksOf = (page: string): [language: string, text: string][] =>
  [...readFileSync(pathOf(page), 'utf8').matchAll(/^```(\w+)\n(.*?)^```$/gms)].map(([, language, text]) => [
    language,
    text,
  ])

/** Splits a shell line into words. Quotes group words, and # begins a comment. */
function words(line: string): string[] {
  const found = [...line.matchAll(/"([^"]*)"|(\S+)/g)].map(([, quoted, bare]) => quoted ?? bare)
  const comment = found.findIndex((word) => word.startsWith('#'))
  return comment === -1 ? found : found.slice(0, comment)
}

/** True for code with names that only exist in a page. */
const isForBrowsers = (text: string) => /\b(document|input|navigator)\.|webRuntime/.test(text)
/** True for code without this package, because other packages are not installed here. */
const isOfOthers = (text: string) => !/from 'lowrank/.test(text)

describe('README and the pages of docs/', () => {
  let consumer: Consumer
  beforeAll(() => {
    consumer = installConsumer('docs')
    link(consumer, 'onnxruntime-node')
    for (const folder of ['models', 'tests'])
      symlinkSync(join(repository, folder), join(consumer.folder, folder), 'junction')
    for (const id of HUB_MODELS) {
      const cached = `hub-home/hub/models--${id.replace('/', '--')}`
      consumer.write(`${cached}/refs/main`, COMMIT)
      const snapshot = join(consumer.folder, cached, 'snapshots', COMMIT)
      cpSync(join(repository, 'models', 'union-3m'), snapshot, { recursive: true })
      // The bundled model has no chat template, so it gets one.
      cpSync(join(repository, 'models', 'data', 'chat.jinja'), join(snapshot, 'chat_template.jinja'))
    }
    // The reader's own data.
    cpSync(join(repository, 'models', 'data', 'chats.jsonl'), join(consumer.folder, 'chats.jsonl'))
    vi.stubEnv('HF_HOME', join(consumer.folder, 'hub-home'))
    vi.stubEnv('HF_HUB_OFFLINE', '1')
  })
  afterAll(() => {
    vi.unstubAllEnvs()
    consumer?.remove()
  })

  it('are all here', () => {
    const pages = readdirSync(join(repository, 'docs')).filter((name) => name.endsWith('.md'))
    expect(pages.sort()).toEqual([...PAGES, ...UNRUN].map((page) => `${page}.md`).sort())
  })

  it.each(['README', ...PAGES])('%s', { timeout: 300_000 }, (page) => {
    let ran = 0
    for (const [language, text] of blocksOf(page)) {
      if (language === 'sh') {
        const lines = briefly(text).split('\n')
        for (const line of lines.filter((line) => line.startsWith('npx lowrank '))) {
          const [command, file] = line.split(' > ')
          const [, , ...args] = words(command as string)
          // `init` writes chats.jsonl, which an earlier page may have made.
          if (args[0] === 'init') rmSync(join(consumer.folder, 'chats.jsonl'), { force: true })
          const { status, stdout, stderr } = consumer.node(BINARY, ...args)
          expect(status, `${line}\n${stderr}`).toBe(0)
          if (file !== undefined) consumer.write(file, stdout)
          ran++
        }
      }
      if (language !== 'js' || isForBrowsers(text) || isOfOthers(text)) continue
      consumer.write('block.mjs', briefly(text))
      const { status, stderr } = consumer.node('block.mjs')
      expect(status, `${text}\n${stderr}`).toBe(0)
      ran++
    }
    expect(ran).toBeGreaterThan(0)
  })
})

describe('the examples of docstrings', () => {
  const sources = ['src/api/verbs.ts', 'src/api/hub.ts', 'src/run/session.ts', 'src/api/session.ts']
  const examples = sources.flatMap((source) => {
    const text = readFileSync(join(repository, source), 'utf8')
    const comments = [
      ...text.matchAll(
        /\/\*\*(?:(?!\*\/).)*? @example\n((?:(?!\*\/).)*)\*\/\s*(?:export (?:const|function|async function) )?(\w+)[<(:]/gs,
      ),
    ]
    return comments.map(([, code, name]) => ({ name, code: code.replaceAll(/^ *\* ?/gm, '') }))
  })

  it('are there for every verb and every method of a session', () => {
    const verbs = /^export (?:const|async function) (\w+)/gm
    const methods = /^ {2}(add|remove|run|generate|stream|classify|embed)\(/gm
    const names = [
      ...readFileSync(join(repository, sources[0]), 'utf8').matchAll(verbs),
      ...readFileSync(join(repository, sources[2]), 'utf8').matchAll(methods),
    ].map(([, name]) => name)
    expect(names.length).toBeGreaterThan(12)
    expect(names.filter((name) => !examples.some((example) => example.name === name))).toEqual([])
  })

  it('run', () => {
    const consumer = installConsumer('examples')
    try {
      link(consumer, 'onnxruntime-node')
      for (const folder of ['models', 'tests'])
        symlinkSync(join(repository, folder), join(consumer.folder, folder), 'junction')
      const names = consumer.node('-p', `Object.keys(require('lowrank')).join()`).stdout.trim()
      const blocks = examples.map(({ name, code }) => `console.log('-- ${name}')\n{\n${code}}\n`)
      consumer.write('examples.mjs', `import * as all from 'lowrank'\nconst { ${names} } = all\n${blocks.join('')}`)
      const { status, stdout, stderr } = consumer.node('examples.mjs')
      expect(status, `${stdout}\n${stderr}`).toBe(0)
    } finally {
      consumer.remove()
    }
  })
})

describe('links', () => {
  const documents = [
    ...['README', 'ARCHITECTURE', 'CONTRIBUTING', 'CHANGELOG', 'SECURITY'].map((name) => `${name}.md`),
    ...readdirSync(join(repository, 'docs')).flatMap((name) => (name.endsWith('.md') ? [join('docs', name)] : [])),
    join('models', 'union-3m', 'README.md'),
  ]

  it.each(documents)('of %s', (document) => {
    const text = readFileSync(join(repository, document), 'utf8')
    const targets = [...text.matchAll(/\]\(([^)\s]+)\)/g)].map(([, target]) => target)
    const broken = targets.filter((target) => {
      if (/^https?:/.test(target)) return false
      const [path, anchor] = target.split('#')
      const file = path === '' ? join(repository, document) : join(repository, dirname(document), path)
      return !existsSync(file) || (anchor !== undefined && !anchorsOf(file).includes(anchor))
    })
    expect(broken).toEqual([])
  })
})

/** Lists the anchors of headings that GitHub makes. */
function anchorsOf(file: string): string[] {
  const headings = [...readFileSync(file, 'utf8').matchAll(/^#+ (.*)$/gm)].map(([, heading]) => heading)
  return headings.map((heading) =>
    heading
      .toLowerCase()
      .replace(/[^\p{L}\p{N}\s_-]/gu, '')
      .replaceAll(' ', '-'),
  )
}
