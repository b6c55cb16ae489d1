// Builds the site into site/out/site: the pages of docs/, API pages from docstrings, a page of errors from their
// classes, llms.txt, each page as Markdown, and the page of web/ as the playground. Usage: npm run web -- build in the
// folder above, then npm ci && npm run build in this folder.

import { execFileSync } from 'node:child_process'
import { cpSync, existsSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import ts from 'typescript'

const site = path.dirname(fileURLToPath(import.meta.url))
const root = path.dirname(site)
const pages = path.join(site, 'out', 'pages')
const dist = path.join(site, 'out', 'site')
const SOURCE = 'https://github.com/lowrank/lowrank/blob/main/'
const bin = (name) => path.join(site, 'node_modules', '.bin', name)
const read = (...names) => readFileSync(path.join(...names), 'utf8')

rmSync(pages, { recursive: true, force: true })
mkdirSync(pages, { recursive: true })

/**
 * Adapts a page of docs/ for the site: links out of docs/ lead to the repository, and comments for tests are removed.
 */
function forSite(text) {
  return text
    .replaceAll(/^<!-- given: .*-->\n/gm, '')
    .replaceAll(/\]\((?!https?:|#)([^)\s]+)\)/g, (link, target) => {
      const [file, anchor] = target.split('#')
      if (!file.startsWith('../')) return link
      return `](${SOURCE}${path.posix.normalize(file.slice(3))}${anchor === undefined ? '' : `#${anchor}`})`
    })
}
for (const name of readdirSync(path.join(root, 'docs'))) {
  if (name.endsWith('.md')) writeFileSync(path.join(pages, name), forSite(read(root, 'docs', name)))
  else if (/\.(png|svg)$/.test(name)) cpSync(path.join(root, 'docs', name), path.join(pages, name))
}

mkdirSync(path.join(pages, 'public'))
cpSync(path.join(root, 'web/mark.svg'), path.join(pages, 'public/mark.svg'))

cpSync(path.join(root, 'web/card.png'), path.join(pages, 'public/card.png'))
cpSync(path.join(site, 'index.md'), path.join(pages, 'index.md'))

/** Makes the page of errors: each class with its code and docstring. */
function errorsPage() {
  const file = path.join(root, 'src/core/base/errors.ts')
  const source = ts.createSourceFile(file, read(file), ts.ScriptTarget.ES2022, true)
  const found = source.statements.filter(ts.isClassDeclaration).flatMap((node) => {
    const code = /\bcode = '(\w+)'/.exec(node.getText())?.[1]
    const about = ts.getJSDocCommentsAndTags(node).map((doc) => ts.getTextOfJSDocComment(doc.comment)).join(' ')
    return code === undefined ? [] : [{ code, name: node.name.text, about: about.replaceAll(/\s+/g, ' ') }]
  })
  const codes = [...read(file).matchAll(/^ {2}\| '(\w+)'$/gm)].map(([, code]) => code)
  const missing = codes.filter((code) => !found.some((one) => one.code === code))
  if (missing.length > 0 || codes.length === 0) throw new Error(`no class for the codes ${missing}`)
  const advice = JSON.parse(read(site, 'errors.json'))
  const sections = codes.map((code) => {
    const { name, about } = found.find((one) => one.code === code)
    if (advice[code] === undefined) throw new Error(`site/errors.json has no advice for ${code}`)
    return `## ${code}\n\n\`${name}\`: ${about}\n\n${advice[code]}\n`
  })
  return `# What does this error mean?\n\nEach error of lowrank has a \`code\`. Its message says where the fault is, what it is, what lowrank expected, what it got, and what you can do. In code, these are the fields \`where\`, \`what\`, \`expected\`, \`got\` and \`hint\`.\n\n${sections.join('\n')}`
}
writeFileSync(path.join(pages, 'errors.md'), errorsPage())

const apiFolder = path.join(pages, 'api')
execFileSync(bin('typedoc'), ['--options', path.join(site, 'typedoc.json'), '--out', apiFolder], { cwd: root, stdio: 'inherit' })
const readme = path.join(apiFolder, 'README.md')
if (existsSync(readme)) {
  writeFileSync(path.join(apiFolder, 'index.md'), read(readme))
  rmSync(readme)
}

// The tables of a module become lists: each name, and the first sentence of its text.
for (const name of readdirSync(apiFolder, { recursive: true }).filter((name) => /\bindex\.md$/.test(name))) {
  const first = (text) => /^.*?[.!](?= [A-Z]|$)/.exec(text)?.[0] ?? text
  const text = read(apiFolder, name)
    .replaceAll(/^\| [\w ]+ \| Description \|\n\| -+ \| -+ \|\n/gm, '')
    .replaceAll(/^\| (\[.+?\]\(\S+\)) \| (.*) \|$/gm, (_, link, about) => `- ${link}\\\n  ${first(about)}`)
  writeFileSync(path.join(apiFolder, name), text)
}

const outline = JSON.parse(read(site, 'outline.json')).map(({ text, items }) => ({
  text,
  items: items.map(([page, title]) => ({ text: title, link: `/${page}` })),
}))
const listed = new Set(outline.flatMap(({ items }) => items.map(({ link }) => link.slice(1))))
const all = readdirSync(pages).filter((name) => name.endsWith('.md') && name !== 'index.md').map((name) => name.slice(0, -3))
const lost = [...all.filter((page) => !listed.has(page)), ...[...listed].filter((page) => !all.includes(page))]
if (lost.length > 0) throw new Error(`site/outline.json and the pages differ: ${lost}`)
const made = readdirSync(apiFolder, { recursive: true }).map((name) => name.replaceAll('\\', '/')).sort()
const modules = made.filter((name) => /.\/index\.md$/.test(name)).map((name) => path.posix.dirname(name))
const api = modules.sort().map((module) => {
  const values = ['functions', 'classes'].flatMap((kind) => made.filter((name) => name.startsWith(`${module}/${kind}/`)))
  const items = values.map((name) => ({ text: path.basename(name, '.md'), link: `/api/${name.slice(0, -3)}` }))
  return { text: module, link: `/api/${module}/`, items }
})
writeFileSync(path.join(pages, 'outline.json'), JSON.stringify({ pages: outline, api }))

execFileSync(bin('vitepress'), ['build', site], { stdio: 'inherit' })

const titled = ({ text, link }) => `- [${text}](${link.slice(1)}.md)`
const llms = outline.map(({ text, items }) => `## ${text}\n\n${items.map(titled).join('\n')}`).join('\n\n')
const about = /^> (.*)$/m.exec(read(root, 'README.md'))?.[1] ?? 'LoRA for TypeScript: train, run, merge and serve adapters of ONNX models.'
writeFileSync(path.join(dist, 'llms.txt'), `# lowrank\n\n> ${about}\n\n${llms}\n\n- [API: all functions, classes and types](api/index.md)\n- [A skill for agents](SKILL.md)\n`)
for (const page of all) cpSync(path.join(pages, `${page}.md`), path.join(dist, `${page}.md`))
cpSync(apiFolder, path.join(dist, 'api'), { recursive: true, filter: (file) => !/\.\w+$/.test(file) || file.endsWith('.md') })
cpSync(path.join(site, 'SKILL.md'), path.join(dist, 'SKILL.md'))
cpSync(path.join(root, 'web', 'dist'), path.join(dist, 'playground'), { recursive: true })

// VitePress ends without an error if it cannot render a page.
const files = ['index.html', 'llms.txt', 'card.png', 'api/index.html', 'playground/index.html', 'api/index.md']
for (const name of [...files, ...all.flatMap((page) => [`${page}.html`, `${page}.md`])]) {
  if (!existsSync(path.join(dist, name))) throw new Error(`the site has no ${name}`)
}
