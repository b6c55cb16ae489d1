// Compiles kernels-asm/ to WebAssembly, and embeds the bytes in src/core/kernels/gen/. With --check it writes nothing,
// and fails if the embedded bytes differ from those of the sources.
import { readFileSync, writeFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import asc from 'assemblyscript/asc'

const root = join(dirname(fileURLToPath(import.meta.url)), '..')
const MODULES = ['gemm', 'merge']

async function compile(entry) {
  let bytes
  const { error, stderr } = await asc.main(
    [
      `${entry}.ts`,
      ...['-O3', '--noAssert', '--runtime', 'stub', '--enable', 'simd'],
      ...['--importMemory', '--noExportMemory', '--initialMemory', '1', '--maximumMemory', '65536'],
      ...['--outFile', 'out.wasm'],
    ],
    {
      readFile: (path) => {
        try {
          return readFileSync(join(root, 'kernels-asm', path), 'utf8')
        } catch {
          return null
        }
      },
      writeFile: (_, contents) => {
        bytes = contents
      },
      listFiles: () => [],
    },
  )
  if (error) throw new Error(`${entry}.ts: ${stderr.toString() || error.message}`)
  return bytes
}

const isCheck = process.argv.includes('--check')
let stale = 0
for (const entry of MODULES) {
  const bytes = await compile(entry)
  console.log(`${entry}: ${bytes.length} bytes`)
  // Repeated bytes stay repeated in hexadecimal: gzipped, a bundle takes half as much as with base64.
  const hex = Buffer.from(bytes).toString('hex')
  const path = join(root, 'src', 'core', 'kernels', 'gen', `${entry}.ts`)
  const text = `// Generated from kernels-asm/${entry}.ts by scripts/build-wasm.mjs.\nexport const ${entry}Module = '${hex}'\n`
  if (!isCheck) writeFileSync(path, text)
  else if (text !== readFileSync(path, 'utf8')) {
    console.error(`src/core/kernels/gen/${entry}.ts is stale: run npm run build:wasm and commit the result`)
    stale++
  }
}
process.exitCode = stale === 0 ? 0 : 1
