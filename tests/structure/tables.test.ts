// The tables of options, which are made from the types, and the page of commands, which is made from the tables, are up
// to date.

import { execFileSync } from 'node:child_process'
import { readdirSync } from 'node:fs'
import { join } from 'node:path'
import { expect, it } from 'vitest'
import { root, textOf } from './project.js'

it('has tables of options that are what the types say', { timeout: 120_000 }, () => {
  const script = join(root, 'scripts/generate/options.mjs')
  expect(execFileSync(process.execPath, [script, '--check'], { encoding: 'utf8' })).toContain('up to date')
})

it.each([
  ['page of commands that is what their help says', 'commands'],
  ['table of the server’s fields that is what it checks', 'fields'],
])('has a %s', async (_, name) => {
  const { default: made } = await import(join(root, 'scripts/generate', `${name}.mjs`))
  for (const [path, text] of Object.entries(await made())) expect(textOf(path)).toBe(text)
})

it('has callbacks in `on` alone, in all options', () => {
  const tables = (readdirSync(join(root, 'src'), { recursive: true }) as string[]).filter((file) =>
    /gen.[\w-]*options\.ts$/.test(file),
  )
  expect(tables.length).toBeGreaterThan(5)
  const names = tables.flatMap((file) =>
    [...textOf(join('src', file)).matchAll(/^ {2}(on[A-Z]\w*):/gm)].map(([, name]) => name),
  )
  // It is no event: its answer is the next turn.
  expect(names).toEqual(['onTurn'])
})
