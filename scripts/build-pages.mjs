// Builds the pages that the package carries, each to a module with its text:
// - web/report → src/api/report/gen/template.ts: one file with script and style inside, and places for title and data
// - web/chat → src/serve/gen/chat-page.ts: the files of the server's page
// With --check, only says whether the committed modules are up to date.
import { createHash } from 'node:crypto'
import { readFileSync, writeFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { build } from 'vite'

const root = join(dirname(fileURLToPath(import.meta.url)), '..')

/** The script and the style of a page. */
async function built(name) {
  const [{ output }] = await build({
    root: join(root, 'web', name),
    configFile: false,
    logLevel: 'warn',
    build: { write: false, lib: { entry: 'main.ts', formats: ['iife'], name }, minify: true },
  })
  return ['.js', '.css'].map((ending) => {
    const file = output.find(({ fileName }) => fileName.endsWith(ending))
    return String(file.code ?? file.source).trim()
  })
}

function keep(path, page, names) {
  const lines = Object.entries(names).map(([name, value]) => `export const ${name} = ${JSON.stringify(value)}\n`)
  const code = `// Generated from web/${page} by scripts/build-pages.mjs.\n${lines.join('')}`
  if (!process.argv.includes('--check')) writeFileSync(join(root, path), code)
  else if (code !== readFileSync(join(root, path), 'utf8')) {
    console.error(`${path} is stale: run npm run build:pages and commit the result`)
    process.exitCode = 1
  }
}

const [script, style] = await built('report')
const hash = (content) => `'sha256-${createHash('sha256').update(content).digest('base64')}'`
const policy = `default-src 'none'; script-src ${hash(script)}; style-src ${hash(style)}; base-uri 'none'; form-action 'none'`
const page = `<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="${policy}">
@@generator@@
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>@@title@@</title>
<style>${style}</style>
</head>
<body>
<noscript><p>This page draws itself with a script of its own, which is switched off here.</p></noscript>
<main id="main"></main>
<script type="application/json" id="data">@@data@@</script>
<script>${script}</script>
</body>
</html>
`
if (/<\/script|@@(title|generator|data)@@/.test(script)) throw new Error('the script holds what the page cannot carry')
keep('src/api/report/gen/template.ts', 'report', { template: page })

const [chatScript, chatStyle] = await built('chat')
const [chatPage, mark] = ['chat/index.html', 'mark.svg'].map((name) => readFileSync(join(root, 'web', name), 'utf8'))
const files = {
  '/': ['text/html; charset=utf-8', chatPage],
  '/chat.js': ['text/javascript; charset=utf-8', chatScript],
  '/chat.css': ['text/css; charset=utf-8', chatStyle],
  '/chat.svg': ['image/svg+xml', mark],
}
keep('src/serve/gen/chat-page.ts', 'chat', { files })
