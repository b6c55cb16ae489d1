// Builds the page to web/dist: static files for any host. It uses the package's public API only.

import { existsSync, readFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { defineConfig, type Plugin } from 'vite'
import recipes from './src/recipes.json' with { type: 'json' }

const here = dirname(fileURLToPath(import.meta.url))
const models = join(here, '..', 'models')
/** scripts/golden/graph_table.py makes it: too large for the repository. web/README.md */
const minilm = join(here, '..', 'out', 'graphs', 'minilm-int8')
const samples = recipes.map(({ file }) => file)
const tokens = ['config.json', 'tokenizer.json', 'tokenizer_config.json', 'onnx/model.onnx']
const FILES = {
  ...filesOf('samples', join(models, 'data'), samples),
  ...filesOf('model-minilm', minilm, existsSync(minilm) ? tokens : []),
  ...filesOf('model', join(models, 'union-3m'), tokens),
}

/** Files by their paths in the page. */
function filesOf(path: string, folder: string, names: readonly string[]): Record<string, string> {
  return Object.fromEntries(names.map((name) => [`${path}/${name}`, join(folder, name)]))
}

/** The small models and the samples, beside the page. */
const bundledModel: Plugin = {
  name: 'bundled-model',
  configureServer(server) {
    server.middlewares.use((request, response, next) => {
      const file = FILES[(request.url ?? '').slice(1).split('?')[0]]
      if (file === undefined) return next()
      const bytes = readFileSync(file)
      response.setHeader('content-length', bytes.length)
      response.end(bytes)
    })
  },
  generateBundle() {
    for (const [fileName, path] of Object.entries(FILES))
      this.emitFile({ type: 'asset', fileName, source: readFileSync(path) })
  },
}

export default defineConfig({
  root: here,
  base: './',
  // A missing file is a 404, and not the page once more.
  appType: 'mpa',
  plugins: [bundledModel],
  define: { HAS_MINILM: existsSync(minilm) },
  resolve: { alias: { lowrank: join(here, '..', 'dist', 'api', 'index.js') } },
  worker: { format: 'es' },
  build: { outDir: join(here, 'dist'), emptyOutDir: true, target: 'es2022', chunkSizeWarningLimit: 1000 },
})
