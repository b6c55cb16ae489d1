// Commands that pages name without running them: each is a command of lowrank, with its options.

import { readFileSync } from 'node:fs'
import { expect, it } from 'vitest'

const sections = new Map(
  readFileSync('docs/commands.md', 'utf8')
    .split(/^## /m)
    .map((section) => [section.slice(0, section.indexOf('\n')), section]),
)

it.each(['site/SKILL.md', 'site/errors.json', 'site/index.md', 'docs/migrating.md', 'README.md'])(
  '%s names only commands and options that are there',
  (page) => {
    const named = readFileSync(page, 'utf8').matchAll(/(?:npx |`)lowrank ([a-z][a-z-]*)([^`\n|]*)/g)
    const wrong = [...named].flatMap(([whole, command, more]) => {
      const section = sections.get(command)
      const options = [...more.matchAll(/--[a-z][\w-]*/g)].map(([option]) => option)
      return section === undefined || options.some((one) => one !== '--help' && !section.includes(one)) ? [whole] : []
    })
    expect(wrong).toEqual([])
  },
)
