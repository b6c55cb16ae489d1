// The site's outline lists each page of docs/, and the page of errors that the site makes.

import { readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { expect, it } from 'vitest'
import { root } from './project.js'

it('has an outline with every page', () => {
  const outline: { items: [page: string, title: string][] }[] = JSON.parse(
    readFileSync(join(root, 'site/outline.json'), 'utf8'),
  )
  const listed = outline.flatMap(({ items }) => items.map(([page]) => page))
  const pages = readdirSync(join(root, 'docs')).filter((name) => name.endsWith('.md'))
  expect(listed.sort()).toEqual([...pages.map((name) => name.slice(0, -3)), 'errors'].sort())
})
