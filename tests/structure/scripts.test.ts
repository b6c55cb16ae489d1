// Scripts and benchmarks import built files by their paths, which no compiler checks.

import { existsSync } from 'node:fs'
import { join } from 'node:path'
import ts from 'typescript'
import { expect, it } from 'vitest'
import { filesIn, root, textOf } from './project.js'

const parse = (path: string) => ts.createSourceFile(path, textOf(path), ts.ScriptTarget.Latest, true)

/** The source of a built file, or undefined if it has none. */
function sourceOf(from: string, specifier: string): string | undefined {
  const built = join(from, '..', specifier)
  const source = built.replace(/^dist/, 'src').replace(/\.js$/, '.ts')
  return built.startsWith('dist') && existsSync(join(root, source)) ? source : undefined
}

/** Lists the names that a source exports as values or types, including names that it re-exports. */
function exportsOf(path: string): Set<string> {
  const names = new Set<string>()
  for (const statement of parse(path).statements) {
    if (ts.isExportDeclaration(statement)) {
      const { exportClause: clause, moduleSpecifier: specifier } = statement
      if (clause !== undefined && ts.isNamedExports(clause))
        for (const { name } of clause.elements) names.add(name.text)
      else if (specifier !== undefined && ts.isStringLiteral(specifier)) {
        const handedOn = join(path, '..', specifier.text).replace(/\.js$/, '.ts')
        for (const name of exportsOf(handedOn)) names.add(name)
      }
    } else if (ts.canHaveModifiers(statement) && ts.getModifiers(statement)?.some(isExport)) {
      const declarations = ts.isVariableStatement(statement) ? statement.declarationList.declarations : [statement]
      for (const { name } of declarations as { name?: ts.Node }[])
        if (name && ts.isIdentifier(name)) names.add(name.text)
    }
  }
  return names
}

const isExport = ({ kind }: ts.Node) => kind === ts.SyntaxKind.ExportKeyword

it('scripts import names that the built files have', () => {
  const files = ['scripts', 'bench', 'examples', 'tests'].flatMap((folder) => filesIn(folder, ['.mjs']))
  const wrong: string[] = []
  let checked = 0
  for (const file of files) {
    for (const statement of parse(file).statements) {
      if (!ts.isImportDeclaration(statement) || !ts.isStringLiteral(statement.moduleSpecifier)) continue
      const { text: specifier } = statement.moduleSpecifier
      if (!/^\.\.?\/(.*\/)?dist\//.test(specifier)) continue
      const source = sourceOf(file, specifier)
      const bindings = statement.importClause?.namedBindings
      const names = bindings !== undefined && ts.isNamedImports(bindings) ? bindings.elements : []
      const exported = source === undefined ? undefined : exportsOf(source)
      for (const { name, propertyName } of names) {
        checked++
        const wanted = (propertyName ?? name).text
        if (!exported?.has(wanted)) wrong.push(`${file}: ${wanted} of ${specifier}`)
      }
    }
  }
  expect(wrong).toEqual([])
  expect(checked).toBeGreaterThan(50)
})
