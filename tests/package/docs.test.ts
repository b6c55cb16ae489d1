// The documents as their readers use them: every command and every block of code for Node runs in a project that has the package
// installed, from the first page to the last, and every link inside the repository leads somewhere.

import { existsSync, readdirSync, readFileSync, symlinkSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { type Consumer, installConsumer, link, repository } from './consumer.js'

/** Later pages use what earlier ones made. */
const PAGES = ['training', 'sessions', 'adapters', 'merging', 'inspecting-adapters']

const pathOf = (page: string) => join(repository, 'docs', `${page}.md`)
const blocksOf = (page: string): [language: string, text: string][] =>
  [...readFileSync(pathOf(page), 'utf8').matchAll(/^```(\w+)\n(.*?)^```$/gms)].map(([, language, text]) => [
    language,
    text,
  ])

/** Words of a shell's line: quotes group, # begins a comment. */
function words(line: string): string[] {
  const found = [...line.matchAll(/"([^"]*)"|(\S+)/g)].map(([, quoted, bare]) => quoted ?? bare)
  const comment = found.findIndex((word) => word.startsWith('#'))
  return comment === -1 ? found : found.slice(0, comment)
}

describe('the pages of docs/', () => {
  let consumer: Consumer
  beforeAll(() => {
    consumer = installConsumer('docs')
    link(consumer, 'onnxruntime-node')
    for (const folder of ['models', 'tests'])
      symlinkSync(join(repository, folder), join(consumer.folder, folder), 'junction')
  })
  afterAll(() => consumer?.remove())

  it('are all here', () => {
    const pages = readdirSync(join(repository, 'docs')).filter((name) => name.endsWith('.md'))
    expect(pages.sort()).toEqual([...PAGES, 'conformance'].map((page) => `${page}.md`).sort())
  })

  it.each(PAGES)('%s', { timeout: 300_000 }, (page) => {
    let ran = 0
    for (const [language, text] of blocksOf(page)) {
      if (language === 'sh') {
        for (const line of text.split('\n').filter((line) => line.startsWith('npx lowrank '))) {
          const [, , ...args] = words(line)
          const { status, stderr } = consumer.node('node_modules/lowrank/dist/cli/main.js', ...args)
          expect(status, `${line}\n${stderr}`).toBe(0)
          ran++
        }
      }
      if (language !== 'js' || !text.includes("'lowrank/node'")) continue
      consumer.write('block.mjs', text)
      const { status, stderr } = consumer.node('block.mjs')
      expect(status, `${text}\n${stderr}`).toBe(0)
      ran++
    }
    expect(ran).toBeGreaterThan(0)
  })
})

describe('links', () => {
  const documents = [
    ...['README', 'ARCHITECTURE', 'CONTRIBUTING', 'CHANGELOG'].map((name) => `${name}.md`),
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

/** Anchors of headings, as GitHub makes them. */
function anchorsOf(file: string): string[] {
  const headings = [...readFileSync(file, 'utf8').matchAll(/^#+ (.*)$/gm)].map(([, heading]) => heading)
  return headings.map((heading) =>
    heading
      .toLowerCase()
      .replace(/[^\p{L}\p{N}\s_-]/gu, '')
      .replaceAll(' ', '-'),
  )
}
