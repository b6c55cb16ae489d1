// Reads the project's text files and the imports of its sources for structural checks.

import { readdirSync, readFileSync } from 'node:fs'
import { dirname, join, relative, sep } from 'node:path'
import { fileURLToPath } from 'node:url'
import ts from 'typescript'

export const root = join(dirname(fileURLToPath(import.meta.url)), '..', '..')

const NOT_OURS = new Set(['node_modules', 'dist', 'out', '.git', '.venv', 'golden', 'gen', 'models'])

/** Lists paths below `folder`, relative to the project and with slashes, without installed or generated files. */
export function filesIn(folder: string, extensions: readonly string[]): string[] {
  return readdirSync(join(root, folder), { withFileTypes: true }).flatMap((entry) => {
    const path = join(folder, entry.name)
    if (entry.isDirectory()) return NOT_OURS.has(entry.name) ? [] : filesIn(path, extensions)
    return extensions.some((extension) => entry.name.endsWith(extension)) ? [path.split(sep).join('/')] : []
  })
}

export function textOf(path: string): string {
  return readFileSync(join(root, path), 'utf8')
}

export interface Import {
  /** The importing file, relative to the project. */
  from: string
  /** The specifier as written. */
  specifier: string
  /** The imported file, relative to the project, if it is one of ours. */
  to: string | undefined
}

/** Lists the imports that load with a source file, without dynamic imports and imports of types. */
export function staticImportsOf(from: string): Import[] {
  const { statements } = ts.createSourceFile(from, textOf(from), ts.ScriptTarget.Latest)
  const written = statements.flatMap((statement) => {
    const isTypes = ts.isImportDeclaration(statement)
      ? statement.importClause?.phaseModifier === ts.SyntaxKind.TypeKeyword
      : !ts.isExportDeclaration(statement) || statement.isTypeOnly
    const specifier = (statement as ts.ImportDeclaration | ts.ExportDeclaration).moduleSpecifier
    return isTypes || specifier === undefined ? [] : [(specifier as ts.StringLiteral).text]
  })
  return written.map((specifier) => importOf(from, specifier))
}

/** Lists every import, re-export, dynamic import and `new URL('./x.js', import.meta.url)` of a source file. */
export function importsOf(from: string): Import[] {
  const text = textOf(from)
  const written = ts.preProcessFile(text, true, true).importedFiles.map(({ fileName }) => fileName)
  const workers = [...text.matchAll(/new URL\(\s*'([^']+)',\s*import\.meta\.url\s*\)/g)].map(
    ([, specifier]) => specifier,
  )
  return [...written, ...workers.filter((specifier) => specifier.endsWith('.js'))].map((specifier) =>
    importOf(from, specifier),
  )
}

function importOf(from: string, specifier: string): Import {
  if (!specifier.startsWith('.')) return { from, specifier, to: undefined }
  const target = relative(root, join(root, dirname(from), specifier))
    .split(sep)
    .join('/')
  return { from, specifier, to: target.replace(/\.js$/, '.ts') }
}
