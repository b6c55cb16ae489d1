// Builds web/report to src/report/gen/template.ts: the page of a report with its script and style inside, and places
// for title and data. With --check, only says whether the committed file is up to date.
import { createHash } from 'node:crypto'
import { readFileSync, writeFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { build } from 'vite'

const root = join(dirname(fileURLToPath(import.meta.url)), '..')
const file = join(root, 'src', 'report', 'gen', 'template.ts')

const [{ output }] = await build({
  root: join(root, 'web', 'report'),
  configFile: false,
  logLevel: 'warn',
  build: { write: false, lib: { entry: 'main.ts', formats: ['iife'], name: 'report' }, minify: true },
})
const text = (ending) => {
  const own = output.find(({ fileName }) => fileName.endsWith(ending))
  return String(own.code ?? own.source).trim()
}
const [script, style] = [text('.js'), text('.css')]
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
const code = `// Generated from web/report by scripts/build-report.mjs.\nexport const template = ${JSON.stringify(page)}\n`
if (!process.argv.includes('--check')) writeFileSync(file, code)
else if (code !== readFileSync(file, 'utf8')) {
  console.error('src/report/gen/template.ts is stale: run npm run build:report and commit the result')
  process.exitCode = 1
}
