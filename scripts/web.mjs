// Serves or builds the page of web/:
//   npm run web            serves it, and rebuilds it after each change
//   npm run web -- build   writes it to web/dist as static files for any host
import { createRequire } from 'node:module'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { build, createServer } from 'vite'

const root = join(dirname(fileURLToPath(import.meta.url)), '..')
try {
  createRequire(import.meta.url).resolve('onnxruntime-web/wasm')
} catch {
  console.error('onnxruntime-web is not installed. Run this first: npm install --no-save -D onnxruntime-web@1.30.0')
  process.exit(1)
}
const configFile = join(root, 'web', 'vite.config.ts')
const [command = 'serve'] = process.argv.slice(2)
if (command === 'build') {
  await build({ configFile })
} else if (command === 'serve') {
  const server = await createServer({ configFile })
  await server.listen()
  server.printUrls()
} else {
  console.error(`There is no command '${command}'. There are serve and build.`)
  process.exit(2)
}
