// Merges an adapter into a safetensors file. Types, shapes, names, order and metadata stay, so that the new file has the old
// one's header and every other tensor's bytes.

import type { ByteSink, ByteSource, Directory } from '../base/bytes.js'
import { readJson } from '../base/bytes.js'
import { FileError, UnsupportedError } from '../base/errors.js'
import { parseSafetensorsHeader } from '../formats/safetensors.js'
import type { LoraAdapter } from '../lora/adapter.js'
import { type MergePlan, planMerge } from './checkpoint-plan.js'
import { copyCompanions, type MergeOptions, type MergeReport, refuseBaseAsOutput, writeTogether } from './output.js'
import { type LayerChange, mergeWeight } from './weight.js'

export interface MergeCheckpointOptions extends MergeOptions {
  /** The base's file in its folder. Default: model.safetensors, and the folder's other files are copied too. */
  basePath?: string
  /** Where the result goes inside `out`. Default: the base's name. */
  path?: string
}

const FILE = 'model.safetensors'
const COPY_BYTES = 4 << 20

/**
 * Writes the merged checkpoint. Its files appear together when all is done.
 *
 * @param base the folder of the base
 * @throws FileError when there is no checkpoint, or the output is the base itself; FormatError when it is damaged;
 *   UnsupportedError when it has several shards, is a pickle, or a weight's type cannot be merged into; MismatchError
 *   when the adapter does not fit; NumericError naming the tensor when a result is not finite
 */
export async function mergeCheckpoint(
  base: Directory,
  adapter: LoraAdapter,
  out: Directory,
  options: MergeCheckpointOptions = {},
): Promise<MergeReport> {
  const startedAt = performance.now()
  const basePath = options.basePath ?? (await findCheckpoint(base))
  const { path = basePath.slice(basePath.lastIndexOf('/') + 1) } = options
  const source = await base.open(basePath)
  try {
    const { tensors } = await parseSafetensorsHeader(source)
    const plan = planMerge(tensors.values(), adapter, { isTied: await isTied(base) })
    await refuseBaseAsOutput(out, path, source)
    const layers: LayerChange[] = []
    const bytes = await writeTogether(out, source.byteLength, options, async (staged) => {
      if (options.basePath === undefined) await copyCompanions(base, staged)
      await writePlan(plan, source, await staged.create(path), (change) => layers.push(change))
      return staged.writtenBytes
    })
    const byName = new Map(layers.map((change) => [change.name, change]))
    return {
      out: `${out.name}/${path}`,
      tensors: plan.tensors.length,
      changed: plan.changed,
      bytes,
      seconds: (performance.now() - startedAt) / 1000,
      layers: adapter.names().map((name) => byName.get(name) as LayerChange),
    }
  } finally {
    await source.close()
  }
}

/** Header and tensors, in the base's order. */
async function writePlan(
  { tensors }: MergePlan,
  source: ByteSource,
  sink: ByteSink,
  report: (change: LayerChange) => void,
): Promise<void> {
  await copyRange(source, 0, tensors[0].info.offset, sink)
  for (const { info, target } of tensors) {
    if (target === undefined) {
      await copyRange(source, info.offset, info.byteLength, sink)
      continue
    }
    const read = (offset: number, byteLength: number) => source.read(info.offset + offset, byteLength)
    for await (const chunk of mergeWeight(target, read, report)) await sink.write(chunk)
  }
}

async function copyRange(source: ByteSource, offset: number, byteLength: number, sink: ByteSink): Promise<void> {
  for (let at = 0; at < byteLength; at += COPY_BYTES) {
    await sink.write(await source.read(offset + at, Math.min(COPY_BYTES, byteLength - at)))
  }
}

async function findCheckpoint(base: Directory): Promise<string> {
  if (await base.has(FILE)) return FILE
  const files = await base.list()
  const index = files.find((name) => name.endsWith('.safetensors.index.json'))
  if (index !== undefined) {
    throw new UnsupportedError({
      where: `${base.name}/${index}`,
      what: 'a checkpoint in several shards cannot be merged into yet',
      expected: `one file ${FILE}`,
    })
  }
  const pickle = files.find((name) => /\.(bin|pt|pth|ckpt)$/.test(name))
  if (pickle !== undefined) {
    throw new UnsupportedError({
      where: `${base.name}/${pickle}`,
      what: 'a pickle, which can run code when it is opened, is never read',
      expected: FILE,
      hint: 'Convert it to safetensors',
    })
  }
  throw new FileError({ where: base.name, what: 'no checkpoint in this folder', expected: FILE })
}

/** Whether config.json beside the weights ties the embeddings. */
async function isTied(base: Directory): Promise<boolean> {
  if (!(await base.has('config.json'))) return false
  const config = (await readJson(base, 'config.json')) as Record<string, unknown> | null
  const text = config?.text_config as Record<string, unknown> | null | undefined
  return (text?.tie_word_embeddings ?? config?.tie_word_embeddings) === true
}
