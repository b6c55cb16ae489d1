// A merge into a path: made by several threads in a hidden folder beside it, and published when it is whole.

import { readdir } from 'node:fs/promises'
import path from 'node:path'
import { type ByteSource, closingOnError, writeFile } from '../../core/base/bytes.js'
import { ConfigError, FileError } from '../../core/base/errors.js'
import { localPath, NodeDirectory, UnfinishedFolder } from '../../files/io/node/files.js'
import { isMountPoint, realOutput, WholeOutput } from '../../files/io/node/whole-output.js'
import { loadOnnx } from '../../onnx/format/model.js'
import { RECORD_FILE } from '../base-files.js'
import { carryOut } from '../carry-out.js'
import { chooseFormat } from '../choose-format.js'
import type { MergeJob, MergeRequest } from '../merge.js'
import type { MergeReport } from '../merge-report.js'
import { type OpenMerge, openMerge, reportPlan, sizeOf } from '../open.js'
import { refuseForFormat } from '../settings.js'
import { stampOf } from './open-files.js'
import { checkSpace, filesIn, refuseEnding, refuseForeignFiles, refuseForeignLinks, refuseOutput } from './place.js'
import { NodeThreads, threadsOf } from './threads.js'

/** @param runs the merge is to follow, and its threads start meanwhile */
export async function openPathJob(request: MergeRequest, runs: boolean): Promise<MergeJob> {
  const { base, overwrite = false, threads: wish } = request
  const given = localPath(String(request.out), 'out')
  const chosen = await chooseFormat(base, given, request)
  refuseForFormat(request, chosen.format)
  refuseEnding(given, chosen.format)
  const isFile = /\.(safetensors|onnx|gguf)$/.test(given)
  if (isFile && request.layout !== undefined) {
    throw new ConfigError({
      where: 'layout',
      what: 'only for a folder as the result',
      got: given,
      hint: 'Leave it out',
    })
  }
  const out = await realOutput(given)
  if (await isMountPoint(out)) throw mountedError(given)
  const names = isFile ? { outFile: path.basename(out), dataName: await freeDataName(out), weightsOnly: true } : {}
  const threads = new NodeThreads(runs ? threadsOf(wish) : 1)
  return closingOnError({ close: async () => threads.dispose() }, async () => {
    const opened = await openMerge({ ...request, ...names }, chosen)
    return closingOnError(opened, async (): Promise<MergeJob> => {
      await refuseForeignLinks(opened.others)
      if (isFile && chosen.format === 'safetensors' && opened.files.length > 1) {
        const what = 'the output has several files, so it needs a folder'
        throw new ConfigError({ where: given, what, hint: 'Choose a folder, or a larger `maxShardBytes`' })
      }
      const inputs = inputsOf(request, opened)
      const stamps = opened.sources.map(stampOf)
      const check = async () => {
        await refuseOutput({ out, isFile, given }, inputs, overwrite)
        checkSpace(out, sizeOf([...opened.files, ...opened.others]))
      }
      return {
        async plan() {
          await check()
          return reportPlan(opened, given)
        },
        async run() {
          const output = await WholeOutput.begin(out)
          const [folder, shown] = isFile ? [output.work, path.dirname(given)] : [output.made, given]
          try {
            await check()
            await Promise.all(opened.sources.map((source) => source.fetch?.()))
            const before = stamps.map((stamp, i) => stamp || stampOf(opened.sources[i]))
            const report = await carryOut(opened, new UnfinishedFolder(folder, shown), request, threads)
            refuseChanges(opened.sources, before)
            if (!isFile) await writeRecord(folder, request, report)
            const mayReplace = async (old: string) => (isFile ? undefined : refuseForeignFiles(old, given))
            await output.publish(overwrite ? mayReplace : undefined, isFile ? await dataFilesOf(out, inputs) : [])
            return { ...report, out: given }
          } finally {
            await output.close()
          }
        },
        async close() {
          threads.dispose()
          await opened.close()
        },
      }
    })
  })
}

/** Throws FileError if somebody wrote to the base or an adapter meanwhile. */
function refuseChanges(sources: readonly ByteSource[], stamps: readonly string[]): void {
  const changed = stamps.findIndex((stamp, i) => stampOf(sources[i]) !== stamp)
  if (changed < 0) return
  throw new FileError({
    where: sources[changed].name,
    what: 'was written to while it was being merged',
    hint: 'Merge again when nothing else writes there',
  })
}

async function writeRecord(folder: string, { base }: MergeRequest, { layers }: MergeReport): Promise<void> {
  const from = base.file ?? path.basename(path.resolve(base.directory.name))
  const record = { version: 1, base: from, files: (await filesIn(folder)).sort(), layers }
  await writeFile(new NodeDirectory(folder), RECORD_FILE, `${JSON.stringify(record, null, 2)}\n`)
}

/** A start for names of data files that no file beside the output has: a graph that is replaced needs its own. */
async function freeDataName(out: string): Promise<string> {
  const outName = path.basename(out)
  const names = await readdir(path.dirname(out)).catch((): string[] => [])
  const isFree = (start: string) => {
    return !names.some((name) => name !== outName && name.startsWith(start) && !/^\.\d/.test(name.slice(start.length)))
  }
  let start = outName
  for (let i = 1; !isFree(start); i++) start = `${outName}.${i}`
  return start
}

/** The data files of the graph that is there, as far as they are named after it and nobody reads them. */
async function dataFilesOf(out: string, inputs: readonly string[]): Promise<string[]> {
  const [folder, outName] = [path.dirname(out), path.basename(out)]
  if (!outName.endsWith('.onnx')) return []
  const model = await loadOnnx(new NodeDirectory(folder), outName).catch(() => undefined)
  await model?.close()
  const names = [...(model?.files.keys() ?? [])]
  return names.filter(
    (name) => name !== outName && name.startsWith(outName) && !inputs.includes(path.join(folder, name)),
  )
}

function inputsOf({ base, adapters }: MergeRequest, { sources }: OpenMerge): string[] {
  const folders = [adapters].flat().map((given) => ('adapter' in given ? given.adapter : given))
  const read = base.file === undefined ? [base.directory, ...folders] : folders
  return [
    ...read.flatMap((folder) => (folder instanceof NodeDirectory ? [folder.name] : [])),
    ...sources.flatMap(({ realPath }) => realPath ?? []),
  ]
}

function mountedError(out: string): FileError {
  return new FileError({
    where: out,
    what: 'a file system is mounted here, so the finished output cannot get this name',
    hint: `Choose a folder in it, such as ${path.join(out, 'merged')}`,
  })
}
