import { mkdir, mkdtemp, readdir, rm, writeFile as writePlain } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { describe, expect, it } from 'vitest'
import {
  type Directory,
  FileError,
  FormatError,
  LoraAdapter,
  MemoryDirectory,
  MismatchError,
  type StepMetrics,
} from '../../src/api/node.js'
import { readAll, writeFile } from '../../src/core/base/bytes.js'
import { NodeDirectory } from '../../src/files/io/node/files.js'
import { newToken } from '../../src/files/io/node/owner.js'
import { MARKER_FILE } from '../../src/lora/peft/file-names.js'
import { checkFingerprint } from '../../src/train/saved/fingerprint.js'
import {
  checkRunFolder,
  clearRunFolder,
  type FolderUse,
  linesOf,
  METRICS_FILE,
  readMarker,
  readMetrics,
  readState,
  STATE_FILE,
  writeMarker,
  writeState,
} from '../../src/train/saved/run-folder.js'
import { withRunPlace } from '../../src/train/saved/run-place.js'
import { RunWriter } from '../../src/train/saved/run-writer.js'

const line = (step: number): StepMetrics => ({
  step,
  epoch: 0,
  loss: 1 / step,
  learningRate: 0.1,
  gradientNorm: 1,
  tokens: 5,
  elapsedMs: 2,
})
const engine = {
  parameters: [Float32Array.of(1, 2), Float32Array.of(3)],
  firstMoments: [Float32Array.of(4, 5), Float32Array.of(6)],
  secondMoments: [Float32Array.of(7, 8), Float32Array.of(9)],
  updates: 2,
}
const run = { step: 2, fingerprint: { seed: '42' }, evaluations: [{ step: 0, loss: 5.5, metrics: {} }], samples: [] }
const names = ['q.A', 'q.B']
const adapter = () => {
  const result = new LoraAdapter({ rank: 1, targetModules: ['q'] })
  result.addLayerOfShape('q', [2, 3])
  return result
}

/** Opens a writer that gets the metrics of each step, as in a run. */
function begin(directory: Directory, use: FolderUse, metrics: StepMetrics[] = []) {
  const writer = new RunWriter({ directory, use }, { task: 'causal-lm' }, metrics)
  const add = (one: StepMetrics) => {
    metrics.push(one)
    return writer.stepTaken()
  }
  return Object.assign(writer, { add })
}

/** Returns a directory's methods as properties, so that a test can leave one out. */
function methodsOf(
  directory: MemoryDirectory,
): Required<
  Omit<Directory, 'name' | 'hubId' | 'hubRevision' | 'isSame' | 'link' | 'reserve' | 'together' | 'freeBytes'>
> {
  return {
    list: () => directory.list(),
    folders: () => directory.folders(),
    has: (file) => directory.has(file),
    open: (file) => directory.open(file),
    create: (file) => directory.create(file),
    remove: (file) => directory.remove(file),
    append: (file, bytes) => directory.append(file, bytes),
  }
}

describe('checkRunFolder', () => {
  it('lets a new run into an empty folder only', async () => {
    await checkRunFolder(new MemoryDirectory(), 'new')
    const foreign = new MemoryDirectory({ 'notes.txt': 'mine' }, 'out')
    await expect(checkRunFolder(foreign, 'new')).rejects.toThrow(/out: the output folder is not empty.*notes\.txt/)
    await expect(checkRunFolder(foreign, 'overwrite')).rejects.toThrow('lowrank did not write this folder')
    await expect(checkRunFolder(foreign, 'resume')).rejects.toThrow(FileError)
  })

  it('overwrites what lowrank wrote, and resumes what is not finished', async () => {
    const directory = new MemoryDirectory({}, 'out')
    await writeMarker(directory, 'unfinished')
    await expect(checkRunFolder(directory, 'new')).rejects.toThrow('Use `resume` or `overwrite`')
    await expect(checkRunFolder(directory, 'resume')).rejects.toThrow(/no unfinished run.*overwrite/)
    await writeState(directory, names, engine, run)
    await checkRunFolder(directory, 'resume')
    await checkRunFolder(directory, 'overwrite')
    await directory.remove(STATE_FILE)
    await writeMarker(directory, 'finished')
    await expect(checkRunFolder(directory, 'resume')).rejects.toThrow('finished')
  })

  it('counts as empty with nothing but what a killed run was writing, which the next one removes', async () => {
    const out = await mkdtemp(path.join(tmpdir(), 'run-folder-'))
    const directory = new NodeDirectory(out)
    const dead = newToken().replace(/-\d+-\d*-/, '-4194305-1-')
    for (const file of ['adapter_model.safetensors', METRICS_FILE, STATE_FILE, '.lowrank-writer']) {
      for (const use of ['new', 'overwrite'] as const) {
        const files = path.join(out, `.${file}.${dead}.tmp`)
        await mkdir(files, { recursive: true })
        await writePlain(path.join(files, file), 'half')
        await checkRunFolder(directory, use)
        await expect(checkRunFolder(directory, 'resume')).rejects.toThrow('Leave out `resume`')
        await withRunPlace({ directory, use }, async () => {})
        expect(await readdir(out)).toEqual([])
      }
    }
    await rm(out, { recursive: true })
  })

  it('believes no marker of something else', async () => {
    for (const text of ['{}', 'null', '{"version": 1, "kind": "shopping list"}']) {
      const directory = new MemoryDirectory({ [MARKER_FILE]: text })
      expect(await readMarker(directory)).toBeUndefined()
      await expect(checkRunFolder(directory, 'overwrite')).rejects.toThrow(FileError)
    }
  })

  it('clears its own files and nothing else', async () => {
    const directory = new MemoryDirectory({ 'notes.txt': 'mine', [METRICS_FILE]: '', [MARKER_FILE]: '{}' })
    await clearRunFolder(directory)
    expect(await directory.list()).toEqual(['notes.txt'])
  })
})

describe('state', () => {
  it('comes back as it was', async () => {
    const directory = new MemoryDirectory()
    await writeState(directory, names, engine, run)
    expect(await readState(directory, names, () => {})).toEqual({ engine, run })
  })

  it('is checked before its tensors are', async () => {
    const directory = new MemoryDirectory()
    await writeState(directory, names, engine, run)
    const check = ({ fingerprint }: typeof run) => checkFingerprint(fingerprint, { seed: '43' }, 'out')
    await expect(readState(directory, ['other.A'], check as never)).rejects.toThrow(MismatchError)
    await expect(readState(directory, ['other.A'], check as never)).rejects.toThrow(/another seed; expected 42, got 43/)
    await expect(readState(directory, ['other.A'], () => {})).rejects.toThrow(FormatError)
  })

  it('refuses other files', async () => {
    const directory = new MemoryDirectory()
    for (const change of [{ step: 'two' }, { step: -1 }, { fingerprint: null }, { evaluations: 'low' }]) {
      await writeState(directory, names, engine, { ...run, ...change } as never)
      await expect(readState(directory, names, () => {})).rejects.toThrow('not the state of a training run')
    }
  })
})

describe('metrics', () => {
  it('gives the first steps back, and complains when they are not there', async () => {
    const directory = new MemoryDirectory()
    await writeFile(directory, METRICS_FILE, linesOf([line(1), line(2), line(3)]))
    expect(await readMetrics(directory, 2)).toEqual([line(1), line(2)])
    await expect(readMetrics(directory, 4)).rejects.toThrow(FormatError)
    await writeFile(directory, METRICS_FILE, linesOf([line(2)]))
    await expect(readMetrics(directory, 1)).rejects.toThrow(FormatError)
    await writeFile(directory, METRICS_FILE, linesOf([null as never]))
    await expect(readMetrics(directory, 1)).rejects.toThrow(FormatError)
  })

  it('does without a last line that a crash has cut off', async () => {
    const directory = new MemoryDirectory()
    await writeFile(directory, METRICS_FILE, linesOf([line(1), line(2)]))
    await directory.append(METRICS_FILE, new TextEncoder().encode('{"step":3,"epo'))
    expect(await readMetrics(directory, 2)).toEqual([line(1), line(2)])
    await expect(readMetrics(directory, 3)).rejects.toThrow(FormatError)
  })
})

describe('RunWriter', () => {
  const state = { names, engine, run }

  it('writes all of a run, and drops the state when it is finished', async () => {
    const directory = new MemoryDirectory()
    const writer = begin(directory, 'new')
    await writer.add(line(1))
    await writer.save(adapter(), state)
    const adapterFiles = ['adapter_config.json', 'adapter_model.safetensors', 'evaluations.jsonl']
    expect(await directory.list()).toEqual([...adapterFiles, MARKER_FILE, METRICS_FILE, STATE_FILE].sort())
    expect((await readMarker(directory))?.status).toBe('unfinished')
    const base = { graph: 'model.onnx', weights: '0123' }
    await writer.finish(run, base, { card: 'card', page: 'page' })
    const written = [...adapterFiles, 'README.md', 'report.html', MARKER_FILE, METRICS_FILE].sort()
    expect(await directory.list()).toEqual(written)
    expect(await readMarker(directory)).toMatchObject({ status: 'finished', base })
  })

  it('leaves the old run in place until it saves', async () => {
    const old = { [MARKER_FILE]: 'old', [STATE_FILE]: 'old', 'notes.txt': 'mine' }
    const directory = new MemoryDirectory(old)
    const writer = begin(directory, 'overwrite')
    await writer.add(line(1))
    await writer.abandon()
    expect(await directory.list()).toEqual(Object.keys(old).sort())
    await writer.save(adapter())
    expect(await directory.has(STATE_FILE)).toBe(false)
    expect(await directory.has('notes.txt')).toBe(true)
  })

  it('takes nothing away that an abandoned run has saved', async () => {
    const directory = new MemoryDirectory()
    const writer = begin(directory, 'new')
    await writer.save(adapter(), state)
    await writer.abandon()
    expect(await directory.has(STATE_FILE)).toBe(true)
  })

  const textOf = async (directory: MemoryDirectory) =>
    new TextDecoder().decode(await readAll(await directory.open(METRICS_FILE)))
  const linesOf = (...steps: number[]) => steps.map((step) => `${JSON.stringify(line(step))}\n`).join('')

  it('appends the lines that are new, and writes no old one again', async () => {
    const directory = new MemoryDirectory()
    const writes: [file: string, text: string][] = []
    const { append, create } = directory
    directory.append = (file, bytes) => {
      writes.push([file, new TextDecoder().decode(bytes)])
      return append.call(directory, file, bytes)
    }
    directory.create = (file) => {
      if (file === METRICS_FILE) writes.push([file, 'whole'])
      return create.call(directory, file)
    }
    const writer = begin(directory, 'new')
    for (const step of [1, 2, 3, 4]) {
      await writer.add(line(step))
      if (step !== 3) await writer.save(adapter(), state)
    }
    expect(writes).toEqual([
      [METRICS_FILE, 'whole'],
      [METRICS_FILE, linesOf(2)],
      [METRICS_FILE, linesOf(3, 4)],
    ])
    expect(await textOf(directory)).toBe(linesOf(1, 2, 3, 4))
  })

  it('goes on from the state: lines after it, and one that a crash has cut off, are made anew', async () => {
    const directory = new MemoryDirectory({ [METRICS_FILE]: `${linesOf(1, 2, 3)}{"step":4,` })
    const writer = begin(directory, 'resume', await readMetrics(directory, 2))
    await writer.add({ ...line(3), loss: 7 })
    await writer.save(adapter(), state)
    await writer.add(line(4))
    await writer.save(adapter(), state)
    expect(await textOf(directory)).toBe(`${linesOf(1, 2)}${JSON.stringify({ ...line(3), loss: 7 })}\n${linesOf(4)}`)
  })

  it('writes whole files where the folder has no other', async () => {
    const directory = new MemoryDirectory()
    const { append: _, ...whole } = { ...methodsOf(directory), name: 'whole' }
    const writer = begin(whole, 'new')
    for (const step of [1, 2]) {
      await writer.add(line(step))
      await writer.save(adapter(), state)
    }
    expect(await textOf(directory)).toBe(linesOf(1, 2))
  })
})
