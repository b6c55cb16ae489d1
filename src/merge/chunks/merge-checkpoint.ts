// Merges adapters into a checkpoint over Directory and ByteSink, in Node and in browsers: plans, then streams chunk by chunk, so
// that memory depends neither on the model nor on a tensor. Node's faster way with threads, in merge/node/merge.ts, shares all but I/O.

import { type ByteSource, type Directory, readAll } from '../../base/bytes.js'
import { FormatError, MismatchError } from '../../base/errors.js'
import { type Checkpoint, openCheckpoint } from '../../formats/checkpoint.js'
import { createMergeKernel } from '../../kernels/merge.js'
import { baseAsOutputError, type MergeOptions, type MergeReport, refuseBaseAsOutput, writeTogether } from '../output.js'
import { type OpenAdapters, openAdapters, requireFiniteReplacements } from '../plan/adapters.js'
import { knowBase } from '../plan/base-model.js'
import { CONFIG_FILE, type ConfigEdit, editConfig, isCompanion, otherDtype } from '../plan/companions.js'
import { CHUNK_BYTES, Chunks, type OutputShard } from '../plan/layout.js'
import type { Renamed } from '../plan/names/renamed.js'
import { type MergePlan, type PlanOptions, planMerge } from '../plan/plan.js'
import type { AdapterInput } from '../weighted.js'
import { ChangeSums, ChunkMerger } from './chunk-merger.js'
import { computeScales, segmentSource } from './dora-scales.js'

/** What a merge into a checkpoint takes. */
export interface MergeCheckpointOptions extends MergeOptions, PlanOptions {
  /** The base's safetensors file, or its index, in its folder. Default: found there, and the folder's other files go along. */
  basePath?: string | undefined
  /**
   * The same bytes on every machine. Default false: fused multiply-adds where the host has them (not in Node before 22), which
   * round once less.
   */
  reproducible?: boolean | undefined
}

/** What a merge into a checkpoint wrote. */
export interface CheckpointReport extends MergeReport {
  /** Files of the base's folder that were not copied, because they hold weights. */
  leftOut: string[]
  /** Tensors of a head that the base does not have. */
  added: string[]
  /** What the base calls otherwise than the adapters do. */
  renamed: Renamed[]
  /** What is left to do before the result can be used. */
  warnings: string[]
}

/** A plan with the files that it reads. */
export interface OpenPlan {
  readonly plan: MergePlan
  readonly checkpoint: Checkpoint
  readonly adapters: OpenAdapters
  readonly warnings: string[]
  close(): Promise<void>
}

/** What planning takes. */
interface OpenPlanOptions extends MergeCheckpointOptions {
  /** The base's other files go along. Default: without `basePath`. */
  isWhole?: boolean | undefined
}

/**
 * Opens base and adapters and plans the merge; nothing is written.
 *
 * @param sign −1 to take the adapters out again
 * @throws what openCheckpoint, openAdapters and planMerge throw
 */
export async function openPlan(
  base: Directory,
  adapters: AdapterInput | readonly AdapterInput[],
  options: OpenPlanOptions,
  sign: 1 | -1 = 1,
): Promise<OpenPlan> {
  const checkpoint = await openCheckpoint(base, options.basePath)
  let opened: OpenAdapters | undefined
  const close = async () => {
    await opened?.close()
    await checkpoint.close()
  }
  try {
    opened = await openAdapters(isList(adapters) ? adapters : [adapters], sign, options)
    const config = await readConfig(base)
    const plan = planMerge(await knowBase(checkpoint, config, opened), opened, options)
    const { isWhole = options.basePath === undefined } = options
    const warnings = configWarnings(plan, config, { isWhole, where: base.name })
    await requireFiniteReplacements(opened)
    await computeScales(plan, checkpoint, opened)
    return { plan, checkpoint, adapters: opened, warnings, close }
  } catch (error) {
    await close()
    throw error
  }
}

/**
 * What a merge changes in config.json where the output gets none.
 *
 * @throws MismatchError for untied embeddings, which loaders would tie again
 */
function configWarnings(
  { configEdit }: MergePlan,
  config: Readonly<Record<string, unknown>> | undefined,
  { isWhole, where }: { isWhole: boolean; where: string },
): string[] {
  if (configEdit === undefined || (isWhole && config !== undefined)) return []
  if (configEdit.untied.length > 0) {
    throw new MismatchError({
      where,
      what: `embeddings cannot be untied without a ${CONFIG_FILE} that says so`,
      ...(!isWhole && { got: 'a file as base or as result, with which none goes along' }),
      hint: isWhole ? 'Keep them tied, or add the file' : 'Keep them tied, or name folders for both',
    })
  }
  const { dtype, head } = configEdit
  const other = dtype && config && otherDtype(config, dtype)
  const forHead =
    head &&
    `The result is a ${head.architecture}, which the ${CONFIG_FILE} that it is used with has to say: none goes along with a single file`
  const asides = forHead === undefined ? [] : [forHead]
  if (other === undefined) return asides
  return [
    ...asides,
    `The result is in ${dtype}, and ${CONFIG_FILE}, which does not go along with a single file, says ${other}: ` +
      'change it in the copy that the result is used with',
  ]
}

/**
 * Writes W + Σ weight · s·B·A for every weight that an adapter changes, rounded once to the stored type; all else is carried
 * over byte for byte. The files appear together when all is done.
 *
 * @param base the folder of the base
 * @param adapters one, or several that are added up; a Directory is read as it is needed
 * @throws FileError when there is no checkpoint, or the output is the base itself; FormatError when one is damaged;
 *   UnsupportedError for pickles, quantised bases and weights that are not F64, F32, F16 or BF16; MismatchError when an adapter
 *   does not fit, or changes tied embeddings; NumericError naming the tensor when a value is not finite
 */
export async function mergeCheckpoint(
  base: Directory,
  adapters: AdapterInput | readonly AdapterInput[],
  out: Directory,
  options: MergeCheckpointOptions = {},
): Promise<CheckpointReport> {
  return writeMerge(base, adapters, out, options, 1)
}

/** The work of merging and, with sign −1, of unmerging. */
export async function writeMerge(
  base: Directory,
  adapters: AdapterInput | readonly AdapterInput[],
  out: Directory,
  options: MergeCheckpointOptions,
  sign: 1 | -1,
): Promise<CheckpointReport> {
  const startedAt = performance.now()
  const { plan, checkpoint, adapters: opened, warnings, close } = await openPlan(base, adapters, options, sign)
  const { sources } = opened
  try {
    if (out === base || (await out.isSame?.(base))) throw baseAsOutputError(out.name)
    for (const { path } of plan.shards) {
      for (const { file } of checkpoint.shards) await refuseBaseAsOutput(out, path, file.source)
    }
    const sums = new ChangeSums()
    const leftOut: string[] = []
    const bytes = await writeTogether(out, plan.bytes, options, async (staged) => {
      if (options.basePath === undefined) leftOut.push(...(await copyCompanions(plan, staged)))
      else if (plan.copiesIndex) await copyFile(base, checkpoint.indexPath!, staged)
      const merger = new ChunkMerger(createMergeKernel(CHUNK_BYTES, options.reproducible ?? false))
      for (const shard of plan.shards) {
        const sink = await staged.create(shard.path)
        for await (const part of shardBytes(shard, checkpoint, sources, merger, sums)) await sink.write(part)
        await sink.commit()
      }
      if (plan.index !== undefined) await write(staged, plan.index.path, plan.index.content)
      return staged.writtenBytes
    })
    return {
      out: plan.shards.length === 1 ? `${out.name}/${plan.shards[0].path}` : out.name,
      ...describePlan(plan, sums),
      bytes,
      seconds: (performance.now() - startedAt) / 1000,
      leftOut,
      warnings,
    }
  } finally {
    await close()
  }
}

/** What a report says of the plan itself. */
export function describePlan(plan: MergePlan, sums: { relativeChange(weight: string): number }) {
  return {
    tensors: plan.tensors.size,
    changed: plan.changed.size,
    added: [...plan.added],
    renamed: [...plan.renamed],
    layers: plan.weights.map(({ name }) => ({
      name: name.replace(/\.weight$/, ''),
      relativeChange: sums.relativeChange(name),
    })),
  }
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

/** Copies the folder's own files but for weights, and returns the names of those left out. */
async function copyCompanions(plan: MergePlan, out: Directory): Promise<string[]> {
  const { checkpoint } = plan
  const base = checkpoint.directory
  const own = new Set(checkpoint.shards.map(({ path }) => path))
  const leftOut: string[] = []
  for (const path of await base.list()) {
    const isIndex = path === checkpoint.indexPath
    if (own.has(path) || (isIndex && !plan.copiesIndex)) continue
    if (!isIndex && !isCompanion(path)) {
      leftOut.push(path)
      continue
    }
    if (path === CONFIG_FILE && plan.configEdit !== undefined) await writeConfig(base, plan.configEdit, out)
    else await copyFile(base, path, out)
  }
  return leftOut
}

async function writeConfig(base: Directory, edit: ConfigEdit, out: Directory): Promise<void> {
  const source = await base.open(CONFIG_FILE)
  try {
    await write(out, CONFIG_FILE, editConfig(await readAll(source), edit, source.name))
  } finally {
    await source.close()
  }
}

async function copyFile(from: Directory, path: string, to: Directory): Promise<void> {
  const source = await from.open(path)
  try {
    const sink = await to.create(path)
    for (let at = 0; at < source.byteLength; at += CHUNK_BYTES) {
      await sink.write(await source.read(at, Math.min(CHUNK_BYTES, source.byteLength - at)))
    }
    await sink.commit()
  } finally {
    await source.close()
  }
}

async function write(out: Directory, path: string, content: string): Promise<void> {
  const sink = await out.create(path)
  await sink.write(new TextEncoder().encode(content))
  await sink.commit()
}

/** The content of config.json, where there is one. Throws FormatError when it is no JSON object. */
export async function readConfig(base: Directory): Promise<Record<string, unknown> | undefined> {
  if (!(await base.has(CONFIG_FILE))) return undefined
  const source = await base.open(CONFIG_FILE)
  try {
    const config: unknown = JSON.parse(new TextDecoder().decode(await readAll(source)))
    if (typeof config === 'object' && config !== null && !Array.isArray(config))
      return config as Record<string, unknown>
    throw new FormatError({ where: source.name, what: 'not a JSON object' })
  } catch (cause) {
    if (!(cause instanceof SyntaxError)) throw cause
    throw new FormatError({ where: source.name, what: `not valid JSON (${cause.message})`, cause })
  } finally {
    await source.close()
  }
}

function isList<T>(value: T | readonly T[]): value is readonly T[] {
  return Array.isArray(value)
}
