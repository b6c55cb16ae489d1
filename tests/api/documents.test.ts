// The code of README and docs/ against the package's declarations, all blocks in one program; and the examples of
// public functions. A comment `<!-- given: … -->` before a block declares what its reader has already.

import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import ts from 'typescript'
import { describe, expect, it } from 'vitest'
import { filesIn, root } from '../structure/project.js'

/** Packages that readers have and this project does not, and imports that bundlers turn into URLs. */
const SURROUNDINGS = `
declare module '@huggingface/transformers'
declare module 'ai'
declare module '@ai-sdk/openai-compatible'
declare module '*?url' { const url: string; export default url }
`

const BLOCK = /^(?:<!-- given: ([^\n]*) -->\n)?```(?:js|mjs|ts)\n(.*?)^```$/gms
const pages = ['README.md', ...filesIn('docs', ['.md'])]

/** Blocks as modules in the folder of their page, each with the line of the page where it begins. */
const blocks = new Map(
  pages.flatMap((page) => {
    const text = readFileSync(join(root, page), 'utf8')
    return [...text.matchAll(BLOCK)].map(({ 1: given = '', 2: code, index }) => {
      const line = text.slice(0, index).split('\n').length + (given === '' ? 1 : 2)
      return [join(root, `${page}.${line}.mts`), { page, line, code: `${given}; export {}\n${code}` }] as const
    })
  }),
)

const entries = [
  'api/index',
  'api/handoff',
  'app/transformers/entry',
  'serve/node/entry',
  'serve/node/ai-sdk',
  'onnx/onnx',
].map((name) => join(root, 'dist', `${name}.d.ts`))
const surroundings = join(root, 'docs', 'surroundings.d.ts')

function programOf(): ts.Program {
  const options: ts.CompilerOptions = {
    target: ts.ScriptTarget.ES2022,
    lib: [
      'lib.es2023.d.ts',
      'lib.esnext.disposable.d.ts',
      'lib.dom.d.ts',
      'lib.dom.iterable.d.ts',
      'lib.dom.asynciterable.d.ts',
    ],
    module: ts.ModuleKind.NodeNext,
    types: ['node'],
    strict: true,
    // Functions in JavaScript have no types.
    noImplicitAny: false,
    skipLibCheck: true,
    noEmit: true,
  }
  const host = ts.createCompilerHost(options)
  const { getSourceFile, fileExists } = host
  const contentOf = (path: string) => (path === surroundings ? SURROUNDINGS : blocks.get(path)?.code)
  host.getSourceFile = (path, ...rest) => {
    const content = contentOf(path)
    return content === undefined ? getSourceFile(path, ...rest) : ts.createSourceFile(path, content, rest[0])
  }
  host.fileExists = (path) => contentOf(path) !== undefined || fileExists(path)
  return ts.createProgram([surroundings, ...entries, ...blocks.keys()], options, host)
}

const program = programOf()

describe('code in README and docs/', () => {
  it('is found', () => expect(blocks.size).toBeGreaterThan(25))

  it('has the types of the package', () => {
    const wrong = [...blocks].flatMap(([path, { page, line }]) => {
      const file = program.getSourceFile(path)!
      return [...program.getSyntacticDiagnostics(file), ...program.getSemanticDiagnostics(file)].map(
        ({ start = 0, messageText }) => {
          const at = file.getLineAndCharacterOfPosition(start).line
          return `${page}:${line + at - 1}: ${ts.flattenDiagnosticMessageText(messageText, ' ')}`
        },
      )
    })
    expect(wrong).toEqual([])
  })
})

it('each public function has an example', () => {
  const checker = program.getTypeChecker()
  const functions = entries.flatMap((entry) =>
    checker.getExportsOfModule(checker.getSymbolAtLocation(program.getSourceFile(entry)!)!).flatMap((symbol) => {
      const target = symbol.flags & ts.SymbolFlags.Alias ? checker.getAliasedSymbol(symbol) : symbol
      const isCalled = checker.getTypeOfSymbol(target).getCallSignatures().length > 0
      return isCalled && !(target.flags & ts.SymbolFlags.Class) ? [target] : []
    }),
  )
  expect(functions.length).toBeGreaterThan(20)
  const without = functions.filter((symbol) => !symbol.getJsDocTags(checker).some(({ name }) => name === 'example'))
  expect(without.map(({ name }) => name)).toEqual([])
})
