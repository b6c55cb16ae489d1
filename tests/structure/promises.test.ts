// Every promise of SECURITY.md has a test: each threat names existing tests, fuzz targets or stress campaigns.

import { existsSync } from 'node:fs'
import { expect, it } from 'vitest'
import { filesIn, textOf } from './project.js'

const threats = [...textOf('SECURITY.md').matchAll(/^(\d+)\. .*$/gm)].map(([line]) => line)
const named = (text: string) => [...text.matchAll(/`([^`]+)`/g)].map(([, name]) => name)

it('each threat of SECURITY.md names a test or a target that is there', () => {
  const scripts = [...filesIn('scripts/fuzz', ['.mjs']), ...filesIn('scripts/stress', ['.mjs'])].map(textOf).join('\n')
  expect(threats.length).toBeGreaterThan(20)
  for (const threat of threats) {
    const paths = named(threat).filter((name) => name.startsWith('tests/'))
    expect(
      paths.filter((path) => !existsSync(path)),
      threat,
    ).toEqual([])
    const targets = [...threat.matchAll(/`(?:fuzz|stress)`: ([^.]*)/g)].flatMap(([, list]) => named(list))
    expect(paths.length + targets.length, threat).toBeGreaterThan(0)
    expect(
      targets.filter((target) => !scripts.includes(target)),
      threat,
    ).toEqual([])
  }
})
