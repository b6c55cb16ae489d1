// What the editor shows is what happens: a default that a type's comment names is the one in the table that the code takes it from.

import { readFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import ts from 'typescript'
import { describe, expect, it } from 'vitest'
import { GENERATE_DEFAULTS, resolveConfig, TRAIN_DEFAULTS } from '../../src/index.js'

const root = fileURLToPath(new URL('../..', import.meta.url))

/** Member → the default that its comment ends in, for the members that name one. */
function documented(file: string, name: string): Record<string, string> {
  const source = ts.createSourceFile(file, readFileSync(root + file, 'utf8'), ts.ScriptTarget.Latest, true)
  const found = source.statements.find((node) => ts.isInterfaceDeclaration(node) && node.name.text === name)
  const members = [...(found as ts.InterfaceDeclaration).members]
  return Object.fromEntries(
    members.flatMap((member) => {
      const comment = ts
        .getJSDocCommentsAndTags(member)
        .map((node) => node.getText())
        .join(' ')
      const text = comment.replaceAll(/\s*\n\s*\*\s?/g, ' ')
      const [, value] = /Default:? `?([^\s`,;:]+?)`?[.,;:]?(?:\s|$)/.exec(text) ?? []
      return value === undefined ? [] : [[(member.name as ts.Identifier).text, value]]
    }),
  )
}

/** As comments write it. */
const written = (value: unknown) => (Array.isArray(value) && value.length === 0 ? '[]' : String(value))

const CASES: [what: string, file: string, name: string, defaults: object][] = [
  ['settings of training', 'src/train/settings.ts', 'TrainSettings', TRAIN_DEFAULTS],
  ['the config of training', 'src/train/options.ts', 'TrainConfig', TRAIN_DEFAULTS.config],
  ['a config elsewhere', 'src/lora/config.ts', 'LoraConfig', resolveConfig()],
  ['texts', 'src/infer/session.ts', 'StreamOptions', { maxNewTokens: GENERATE_DEFAULTS.maxNewTokens }],
  ['batches of texts', 'src/infer/session.ts', 'GenerateOptions', { batchSize: GENERATE_DEFAULTS.batchSize }],
]

describe('documented defaults', () => {
  it.each(CASES)('of %s', (_, file, name, defaults) => {
    const comments = documented(file, name)
    const expected = Object.entries(defaults).filter(([, value]) => value !== undefined && typeof value !== 'object')
    expect(expected.length).toBeGreaterThan(0)
    for (const [key, value] of expected) {
      // The comment may count in powers of ten.
      const shown = comments[key]
      expect(typeof value === 'number' ? Number(shown) : shown, key).toBe(
        typeof value === 'number' ? value : written(value),
      )
    }
  })
})
