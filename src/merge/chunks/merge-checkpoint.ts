// Merges adapters into a checkpoint over Directory and ByteSink, in Node and in browsers: plans, then streams chunk by chunk, so
// that memory depends neither on the model nor on a tensor. Node's faster way with threads, in merge/node, shares all but I/O.

import { type ByteSource, type Directory, writeFile } from '../../base/bytes.js'
import type { Checkpoint } from '../../formats/checkpoint.js'
import { createMergeKernel } from '../../kernels/wasm-merge.js'
import { CONFIG_FILE } from '../plan/config-edit.js'
import { CHUNK_BYTES, Chunks, type OutputShard } from '../plan/layout.js'
import type { MergePlan } from '../plan/plan.js'
import type { MergeReport } from '../report.js'
import type { RunSettings } from '../settings.js'
import { baseAsOutputError, refuseBaseAsOutput, writeTogether } from '../staged.js'
import type { AdapterInput } from '../weighted.js'
import { ChangeSums, ChunkMerger } from './chunk-merger.js'
import { writeCompanion } from './companions.js'
import { segmentSource } from './dora-scales.js'
import { describePlan, type OpenPlan, type OpenPlanOptions, openPlan } from './open-plan.js'

/** What a merge into a checkpoint takes. */
export interface MergeCheckpointOptions extends RunSettings, OpenPlanOptions {
  /**
   * The same bytes on every machine. Default false: fused multiply-adds where the host has them (not in Node before 22), which
   * round once less.
   */
  reproducible?: boolean | undefined
}

/**
 * Writes W + Σ weight · s·B·A for every weight that an adapter changes, rounded once to the stored type; all else is carried
 * over byte for byte. The files appear together when all is done.
 *
 * @param base the folder of the base
 * @param adapters one, or several that are added up; a Directory is read as it is needed
 * @param sign −1 to unmerge
 * @throws FileError when there is no checkpoint, or the output is the base itself; FormatError when one is damaged;
 *   UnsupportedError for pickles, quantized bases and weights that are not fp64, fp32, fp16 or bf16; MismatchError when an adapter
 *   does not fit, or changes tied embeddings; NumericError naming the tensor when a value is not finite
 */
export async function mergeCheckpoint(
  base: Directory,
  adapters: AdapterInput | readonly AdapterInput[],
  out: Directory,
  options: MergeCheckpointOptions = {},
  sign: 1 | -1 = 1,
): Promise<MergeReport> {
  const startedAt = performance.now()
  const opened = await openPlan(base, adapters, options, sign)
  const { plan, checkpoint, companions, warnings } = opened
  try {
    if (out === base || (await out.isSame?.(base))) throw baseAsOutputError(out.name)
    for (const { path } of plan.shards) {
      for (const { file } of checkpoint.shards) await refuseBaseAsOutput(out, path, file.source)
    }
    const sums = new ChangeSums()
    const bytes = await writeTogether(out, plan.bytes, options, async (staged) => {
      await writeCompanions(opened, staged)
      const merger = new ChunkMerger(createMergeKernel(CHUNK_BYTES, options.reproducible ?? false))
      for (const shard of plan.shards) {
        const sink = await staged.create(shard.path)
        for await (const part of shardBytes(shard, checkpoint, opened.adapters.sources, merger, sums)) {
          await sink.write(part)
        }
        await sink.commit()
      }
      await writeIndex(plan, staged)
      return staged.writtenBytes
    })
    return {
      out: plan.shards.length === 1 ? `${out.name}/${plan.shards[0].path}` : out.name,
      format: 'safetensors',
      ...describePlan(plan, sums),
      bytes,
      seconds: (performance.now() - startedAt) / 1000,
      copied: [...companions.copied],
      leftOut: [...companions.leftOut],
      warnings,
    }
  } finally {
    await opened.close()
  }
}

/** Copies the base's other files, and writes the changed config.json. Returns the names. */
export async function writeCompanions(
  { plan, checkpoint, companions, config }: OpenPlan,
  out: Directory,
): Promise<string[]> {
  const copied = [...companions.copied, ...(plan.copiesIndex ? [checkpoint.indexPath!] : [])]
  for (const path of copied) {
    if (path === CONFIG_FILE && config !== undefined) await writeFile(out, path, config)
    else await writeCompanion(checkpoint.directory, path, out, companions)
  }
  return copied
}

/** Writes the index where it is a new one. Returns its name then. */
export async function writeIndex({ index }: MergePlan, out: Directory): Promise<string[]> {
  if (index === undefined) return []
  await writeFile(out, index.path, index.content)
  return [index.path]
}

async function* shardBytes(
  { header, segments }: OutputShard,
  checkpoint: Checkpoint,
  sources: readonly ByteSource[],
  merger: ChunkMerger,
  sums: ChangeSums,
): AsyncGenerator<Uint8Array> {
  if (header !== undefined) yield header
  for (const segment of segments) {
    const source = segmentSource(checkpoint, sources, segment.shard)
    const chunks = new Chunks(segment)
    for (let i = 0; i < chunks.count; i++) {
      const chunk = chunks.at(i)
      if (segment.weight === undefined) {
        yield await source.read(chunk.baseOffset, chunk.baseBytes)
        continue
      }
      for (const range of merger.begin(chunk)) {
        merger.take(range, await sources[range.factor.source].read(range.offset, range.byteLength))
      }
      merger.input(chunk).set(await source.read(chunk.baseOffset, chunk.baseBytes))
      const result = merger.merge(chunk)
      sums.add(segment.weight.name, result)
      yield result.bytes
    }
  }
}
