// Builds the page to web/dist: static files for any host. It uses the package's public API only.

import { readFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { defineConfig, type Plugin } from 'vite'

const here = dirname(fileURLToPath(import.meta.url))
const models = join(here, '..', 'models')
/** Untrained, and of 0.1 MB: the one of the tests. */
const pictures = join(here, '..', 'tests', 'golden', 'image-classification', 'vit')
const FILES: Record<string, string> = {
  ...Object.fromEntries(
    ['mails.csv', 'whaling.jsonl', 'questions.jsonl'].map((name) => [`samples/${name}`, join(models, 'data', name)]),
  ),
  ...Object.fromEntries(
    ['config.json', 'preprocessor_config.json', 'onnx/model.onnx'].map((name) => [
      `model-pictures/${name}`,
      join(pictures, name),
    ]),
  ),
  ...Object.fromEntries(
    ['config.json', 'generation_config.json', 'tokenizer.json', 'tokenizer_config.json', 'onnx/model.onnx'].map(
      (name) => [`model/${name}`, join(models, 'union-3m', name)],
    ),
  ),
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
  resolve: { alias: { lowrank: join(here, '..', 'dist', 'index.js') } },
  worker: { format: 'es' },
  build: { outDir: join(here, 'dist'), emptyOutDir: true, target: 'es2022', chunkSizeWarningLimit: 1000 },
})
