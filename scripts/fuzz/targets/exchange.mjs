// Adapters in other formats: GGUF, .onnx_adapter, mlx-lm. If one can be read, it is written again in another format.

import { MemoryDirectory } from '../../../dist/base/bytes.js'
import { convert } from '../../../dist/exchange/convert.js'
import { writeGguf } from '../../../dist/formats/gguf/gguf.js'
import { filesLike, folder, read } from '../inputs.mjs'
import { mutateBytes, mutateJson, mutateSafetensors } from '../mutate.mjs'

const place = (files, file) => ({ directory: new MemoryDirectory(files), file })
const modelOf = (path) => path.replace(/\/[^/]*$/, '')

async function toPeft(source, base, isLast = false) {
  const out = place({}, undefined)
  await convert(source, { to: 'peft', out, base, dtype: 'keep' })
  if (!isLast) await convert(out, { to: 'onnx-adapter', out: place({}, undefined), base: undefined, dtype: 'fp16' })
}

let mlx
/** Makes a folder as lowrank writes it for mlx-lm. */
async function mlxFiles() {
  if (mlx === undefined) {
    const out = place({}, undefined)
    const source = place(folder('tests/golden/kinds/dora'), undefined)
    await convert(source, { to: 'mlx', out, base: undefined, dtype: 'keep' })
    mlx = Object.fromEntries(out.directory.files)
  }
  return mlx
}
const files = await mlxFiles()

/** Makes the part of a GGUF model with mistral's sizes that converting an adapter reads. */
async function modelFile() {
  const sizes = { attn_q: [32, 32], attn_k: [16, 32], attn_v: [16, 32], attn_output: [32, 32] }
  Object.assign(sizes, { ffn_gate: [48, 32], ffn_up: [48, 32], ffn_down: [32, 48] })
  const tensors = [0, 1].flatMap((layer) =>
    Object.entries(sizes).map(([name, shape]) => ({
      name: `blk.${layer}.${name}.weight`,
      shape,
      dtype: 'fp16',
      bytes: () => new Uint8Array(2 * shape[0] * shape[1]),
    })),
  )
  const metadata = new Map([
    ['general.architecture', 'llama'],
    ['llama.attention.head_count', { u32: 4 }],
    ['llama.attention.head_count_kv', { u32s: [2, 2] }],
    ['llama.embedding_length', { u32: 32 }],
  ])
  const directory = new MemoryDirectory()
  const sink = await directory.create('model.gguf')
  await writeGguf(sink, metadata, tensors)
  await sink.commit()
  return Buffer.from(directory.files.get('model.gguf'))
}
const base = await modelFile()

export const targets = [
  {
    name: 'gguf-adapter',
    seeds: () => filesLike(/gguf\/.*\.gguf$/),
    make: read,
    mutate: (random, bytes) => mutateBytes(random, bytes, { isHead: true }),
    check: (bytes, path) => toPeft(place({ 'a.gguf': bytes }, 'a.gguf'), place(folder(modelOf(path)), 'config.json')),
  },
  {
    name: 'gguf-base',
    seeds: () => ['mistral'],
    make: () => base,
    mutate: (random, bytes) => mutateBytes(random, bytes, { isHead: true }),
    check: (bytes, name) =>
      convert(place(folder(`tests/golden/gguf/${name}`), undefined), {
        to: 'gguf',
        out: place({}, undefined),
        base: place({ 'model.gguf': bytes }, 'model.gguf'),
        dtype: 'keep',
      }),
  },
  {
    name: 'onnx-adapter',
    seeds: () => filesLike(/\.onnx_adapter$/),
    make: read,
    mutate: (random, bytes) => mutateBytes(random, bytes, { isHead: true }),
    check: (bytes) => toPeft(place({ a: bytes }, 'a')),
  },
  {
    name: 'mlx-config',
    seeds: () => ['dora'],
    make: () => Buffer.from(files['adapter_config.json']),
    mutate: mutateJson,
    check: (bytes) => toPeft(place({ ...files, 'adapter_config.json': bytes }, undefined), undefined, true),
  },
  {
    name: 'mlx-weights',
    seeds: () => ['dora'],
    make: () => Buffer.from(files['adapters.safetensors']),
    mutate: mutateSafetensors,
    check: (bytes) => toPeft(place({ ...files, 'adapters.safetensors': bytes }, undefined), undefined, true),
  },
]
