import { mkdtemp, readFile, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { expect, it } from 'vitest'
import { MemoryDirectory, saveAdapter } from '../../src/api/node.js'
import { loadOnnx } from '../../src/onnx/format/model.js'
import { directoryOf, makeAdapter, openModel } from '../run/models.js'
import { mergeFiles, toDisk, unmergeFiles } from './node/disk.js'
import { adapter, base, mergeCheckpoint, mergeOnnx } from './toolkit.js'

const FILE = 'chat_template.jinja'
const [OURS, THEIRS] = ['{{ messages }}', '{{ messages[0].content }}']

function trained(template: string | undefined) {
  const lora = adapter({ 'layers.0.a_proj': [40, 24] })
  lora.chatTemplate = template
  return lora
}

/** Merges, and returns the chat template, the copied files, and the warnings. */
async function merged(own: string | undefined, templates: readonly (string | undefined)[]) {
  const files: Record<string, string> = own === undefined ? {} : { [FILE]: own }
  const from = await base([['layers.0.a_proj.weight', 'fp32', [40, 24]]], { files })
  const out = new MemoryDirectory()
  const { copied, warnings } = await mergeCheckpoint(from, templates.map(trained), out)
  const bytes = out.files.get(FILE)
  return { template: bytes && new TextDecoder().decode(bytes), isCopied: copied.includes(FILE), warnings }
}

it.each([
  ['none, where nobody has one', undefined, [undefined], undefined, 0],
  ['the base’s, where the adapter has none', OURS, [undefined], OURS, 0],
  ['the adapter’s, where the base has none', undefined, [THEIRS], THEIRS, 0],
  ['either, where they are the same', OURS, [OURS], OURS, 0],
  ['the adapter’s with a warning, where the base has another', OURS, [THEIRS], THEIRS, 1],
  ['that of the one adapter of two that has one', undefined, [undefined, THEIRS], THEIRS, 0],
  ['the base’s with a warning, where adapters differ', OURS, [OURS, THEIRS], OURS, 1],
  ['none with a warning, where adapters differ and the base has none', undefined, [OURS, THEIRS], undefined, 1],
] as const)('a result has %s', async (_, own, templates, expected, warnings) => {
  const result = await merged(own, templates)
  expect(result).toMatchObject({ template: expected, isCopied: expected !== undefined })
  expect(result.warnings).toHaveLength(warnings)
})

it.each([
  ['where the base has none', { chat_template: undefined }],
  ['where the base has another', { chat_template: OURS }],
])('tokenizer_config.json, which transformers.js reads, has the adapter’s template %s', async (_, settings) => {
  const files = { 'tokenizer_config.json': JSON.stringify({ eos_token: '<eos>', ...settings }), 'tokenizer.json': '{}' }
  const from = await base([['layers.0.a_proj.weight', 'fp32', [40, 24]]], { files })
  for (const [templates, expected] of [
    [[THEIRS], THEIRS],
    [[undefined], settings.chat_template],
  ] as const) {
    const out = new MemoryDirectory()
    await mergeCheckpoint(from, templates.map(trained), out)
    const read = JSON.parse(new TextDecoder().decode(out.files.get('tokenizer_config.json')))
    expect(read).toEqual({ eos_token: '<eos>', ...(expected !== undefined && { chat_template: expected }) })
    expect(out.files.has('tokenizer.json')).toBe(true)
  }
})

it('in a folder on disk, and removing the adapter keeps it', async () => {
  const folder = await mkdtemp(path.join(tmpdir(), 'merge-'))
  try {
    const from = await toDisk(await base([['layers.0.a_proj.weight', 'fp32', [40, 24]]]), path.join(folder, 'base'))
    const saved = new MemoryDirectory()
    await saveAdapter(trained(THEIRS), saved)
    const lora = await toDisk(saved, path.join(folder, 'adapter'))
    const [out, back] = ['out', 'back'].map((name) => path.join(folder, name))
    const options = { threads: 1 }
    expect((await mergeFiles(from, [lora], out, options)).copied).toContain(FILE)
    expect(await readFile(path.join(out, FILE), 'utf8')).toBe(THEIRS)
    await unmergeFiles(out, [lora], back, options)
    expect(await readFile(path.join(back, FILE), 'utf8')).toBe(THEIRS)
  } finally {
    await rm(folder, { recursive: true })
  }
})

it('beside an .onnx file', async () => {
  const folder = directoryOf('tests/golden/models/llama-q4')
  const opened = await openModel('tests/golden/models/llama-q4')
  const lora = makeAdapter(opened, /o_proj$/)
  await opened.close()
  lora.chatTemplate = THEIRS
  const out = new MemoryDirectory()
  const model = await loadOnnx(folder, 'onnx/model.onnx')
  await mergeOnnx(model, lora, out, { path: 'onnx/model.onnx', baseFiles: folder })
  expect(new TextDecoder().decode(out.files.get(FILE))).toBe(THEIRS)
  await model.close()
})
