// Habits that readers rely on: short files with a header, and texts that are right on every machine.

import { dirname } from 'node:path'
import { describe, expect, it } from 'vitest'
import { filesIn, textOf } from './project.js'

const MAX_LINES = 600
const MAX_FILES = 20

const code = ['src', 'tests', 'examples', 'bench', 'scripts'].flatMap((folder) =>
  filesIn(folder, ['.ts', '.mjs', '.js']),
)
const texts = filesIn('.', ['.ts', '.mjs', '.js', '.py', '.md', '.json', '.sh']).filter(
  (path) => !path.endsWith('package-lock.json'),
)

describe('project texts', () => {
  it(`keeps files within ${MAX_LINES} lines`, () => {
    const long = code.map((path) => ({ path, lines: textOf(path).trimEnd().split('\n').length }))
    expect(long.filter(({ lines }) => lines > MAX_LINES)).toEqual([])
  })

  it('opens each source with a comment of at most 6 lines that says what it is', () => {
    const wrong = filesIn('src', ['.ts']).filter((path) => {
      const lines = textOf(path)
        .replace(/^#!.*\n/, '')
        .split('\n')
      const header = lines.findIndex((line) => !line.startsWith('//'))
      return header < 1 || header > 6
    })
    expect(wrong).toEqual([])
  })

  it('keeps comments within 120 columns', () => {
    const own = [...code, ...filesIn('web', ['.ts']), ...filesIn('kernels-asm', ['.ts'])]
    const wide = own.flatMap((path) =>
      textOf(path)
        .split('\n')
        .filter((line) => line.length > 120 && /^\s*(\/\/|\/\*\*|\*) /.test(line) && !/\S{90}|\/\/ {3}/.test(line))
        .map((line) => `${path}: ${line}`),
    )
    expect(wide).toEqual([])
  })

  it('makes no web streams of Node’s: they throw where nobody can catch it if a caller leaves', () => {
    expect(filesIn('src', ['.ts']).filter((path) => /\.toWeb\(/.test(textOf(path)))).toEqual([])
  })

  it(`has no folder of sources with more than ${MAX_FILES} files`, () => {
    const sizes = new Map<string, number>()
    for (const path of [...filesIn('src', ['.ts']), ...filesIn('web', ['.ts'])])
      sizes.set(dirname(path), (sizes.get(dirname(path)) ?? 0) + 1)
    sizes.delete('src/model/families') // a file for each family
    expect([...sizes].filter(([, files]) => files > MAX_FILES)).toEqual([])
  })

  it('closes each model that a test opens: a tokenizer alone comes from loadTokenizer', () => {
    const open = /const \{(?![^}]*\b(?:onnx|close)\b)[^}]*\} = await (?:openModel|loadModel)\(.*/g
    const left = filesIn('tests', ['.ts']).flatMap((path) =>
      Array.from(textOf(path).matchAll(open), ([line]) => `${path}: ${line}`),
    )
    expect(left).toEqual([])
  })

  it('has each paragraph of Markdown on one line', () => {
    const special = /^\s*($|[-*+] |\d+\. |\||#|```|>|<|-->|---|=|!?\[.*\]:)/
    const broken = texts
      .filter((path) => path.endsWith('.md'))
      .flatMap((path) => {
        let isCode = false
        // The fields at the top of a page are not prose.
        const lines = textOf(path)
          .replace(/^---\n.*?\n---\n/s, (head) => head.replaceAll(/.+/g, ''))
          .split('\n')
        return lines.flatMap((line, i) => {
          if (line.trim().startsWith('```')) isCode = !isCode
          const before = lines[i - 1] ?? ''
          const isProse = !isCode && !special.test(line) && !/^\s*($|\||#|```|<|-->|---)/.test(before)
          return isProse ? [`${path}:${i + 1}`] : []
        })
      })
    expect(broken).toEqual([])
  })

  it('names no absolute path of one machine', () => {
    const machine = /(^|[\s'"`(=:])(\/(work|root|home|Users)\/\w|[A-Z]:\\Users\\)/m
    expect(texts.filter((path) => path !== 'tests/structure/texts.test.ts' && machine.test(textOf(path)))).toEqual([])
  })

  it('registers hooks of tests in functions, because files of tests share what they import', () => {
    const shared = filesIn('tests', ['.ts']).filter((path) => !path.endsWith('.test.ts'))
    expect(shared.filter((path) => /^(before|after)(Each|All)\(/m.test(textOf(path)))).toEqual([])
  })

  it('lists the tests that replace modules, which other tests must not see', () => {
    const replacing = filesIn('tests', ['.test.ts']).filter((path) => /^vi\.mock\(/m.test(textOf(path)))
    const listed = /const MOCKS = \[(.*)\]/.exec(textOf('vitest.config.ts'))![1]
    expect(listed).toBe(replacing.map((path) => `'${path}'`).join(', '))
  })

  it('leaves no task for later in the sources', () => {
    const later = /\b(TODO|FIXME|XXX|HACK)\b/
    expect(filesIn('src', ['.ts']).filter((path) => later.test(textOf(path)))).toEqual([])
  })
})

it('lists mutations that can still be made', () => {
  const mutations: { file: string; from: string; test: string }[] = JSON.parse(textOf('scripts/mutations.json'))
  expect(mutations).toHaveLength(23)
  const tests = filesIn('tests', ['.test.ts'])
  for (const { file, from, test } of mutations) {
    expect(textOf(file).split(from), `${file}: ${from}`).toHaveLength(2)
    expect(tests).toContain(test)
  }
})

const sections = new Map(
  textOf('docs/commands.md')
    .split(/^## /m)
    .map((section) => [section.slice(0, section.indexOf('\n')), section]),
)

it.each(['site/SKILL.md', 'site/errors.json', 'site/index.md', 'docs/migrating.md', 'README.md'])(
  '%s names only commands and options that are there',
  (page) => {
    const named = textOf(page).matchAll(/(?:npx |`)lowrank ([a-z][a-z-]*)([^`\n|]*)/g)
    const wrong = [...named].flatMap(([whole, command, more]) => {
      const section = sections.get(command)
      const options = [...more.matchAll(/--[a-z][\w-]*/g)].map(([option]) => option)
      return section === undefined || options.some((one) => one !== '--help' && !section.includes(one)) ? [whole] : []
    })
    expect(wrong).toEqual([])
  },
)
