// Writes the table of fields in docs/serving.md from the tables by which the server checks bodies, and copies the
// version from package.json into the server.
//
//     node scripts/build.mjs && node scripts/generate/fields.mjs

import { readFileSync, writeFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import { ROUTES } from '../../dist/serve/routes.js'

const at = (path) => new URL(`../../${path}`, import.meta.url)

/** Formats braces as code, because VitePress would read them as HTML attributes of the text before them. */
const cell = (text) =>
  text
    .replaceAll('|', '\\|')
    .replaceAll(/([<>])/g, '\\$1')
    .replaceAll(/\{(?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*\}/g, '`$&`')

export default function made() {
  const fields = new Map()
  const routes = Object.entries(ROUTES).flatMap(([path, methods]) =>
    Object.values(methods).map((route) => [path, route]),
  )
  for (const [path, { fields: table = {} }] of routes) {
    for (const [name, { about, expected, isRequired }] of Object.entries(table)) {
      const key = `${name}\n${about}\n${expected}`
      const known = fields.get(key) ?? { name, about, expected, routes: [] }
      known.routes.push(`${path.replace('/v1/', '')}${isRequired ? '*' : ''}`)
      fields.set(key, known)
    }
  }
  const rows = [...fields.values()].map(({ name, about, expected, routes }) => {
    const values = about === 'refused' ? `only ${expected.replace(': nothing else is done here', '')}` : expected
    return `| \`${name}\` | ${routes.join(', ')} | ${cell(values)} | ${cell(about)} |`
  })
  const table = ['| field | routes | values | what it does |', '| --- | --- | --- | --- |', ...rows].join('\n')

  const [START, END] = ['<!-- fields -->', '<!-- /fields -->']
  const docs = readFileSync(at('docs/serving.md'), 'utf8')
  const [before, rest] = docs.split(START)
  return {
    'docs/serving.md': `${before}${START}\n\n${table}\n\n${END}${rest.split(END)[1]}`,
    'src/serve/gen/version.ts': `export const VERSION = '${JSON.parse(readFileSync(at('package.json'), 'utf8')).version}'\n`,
  }
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  for (const [path, text] of Object.entries(made())) writeFileSync(at(path), text)
}
