// Runs one cell of the matrix with public functions and compares with PEFT: counts, outputs, merged weights, and the
// file after it is saved again.

import path from 'node:path'
import {
  type AdapterReport,
  type FloatArray,
  type FloatDtype,
  type LoraAdapter,
  loadAdapter,
  type Matrix,
  MemoryDirectory,
  saveAdapter,
  type Tensor,
  type TiedPolicy,
} from '../../src/api/node.js'
import { MemorySource } from '../../src/core/base/bytes.js'
import { decodeFloats, encodeFloats } from '../../src/core/base/dtype.js'
import { transpose } from '../../src/core/base/tensor.js'
import { parseSafetensorsHeader, saveSafetensors } from '../../src/files/safetensors.js'
import { changesBase } from '../../src/lora/init/inits.js'
import { inspectAdapter } from '../../src/lora/peft/inspect.js'
import { convertToPlain } from '../../src/merge/tools/to-plain.js'
import type { MergeAdapter } from '../../src/merge/weighted.js'
import { convolve } from '../convolve.js'
import { mergeCheckpoint } from '../merge/toolkit.js'
import {
  baseFolder,
  type Cell,
  cellTensors,
  type Expected,
  type ExpectedLayer,
  modelTensors,
  readExpected,
  readFolder,
  readTensors,
} from './golden.js'
import { LOWRANK_REFUSES } from './refused.js'

/** The largest errors of a tensor, relative to its largest value. */
export const TOLERANCES = { forward: 1e-5, merge: 1e-6 } as const

export const CHECKS = ['counts', 'forward', 'merge', 'bf16', 'f16', 'file'] as const
export type Check = (typeof CHECKS)[number]

export interface CellResult {
  status: 'pass' | 'peft-refuses' | 'lowrank-refuses' | 'fail' | 'blank'
  /** Why the cell is refused, or PEFT’s message if it can run an adapter but not merge it. */
  message?: string
  /** Problems, each beginning with the name of the check. */
  problems: string[]
  /** The comparisons that were made. */
  done: Check[]
}

/** Changes an adapter's files before lowrank reads them. */
export type Tamper = (files: MemoryDirectory) => void

/**
 * @param tamper a mistake that the cell must notice, for tests of the suite itself
 * @param checks the comparisons to make. Default: all
 */
export async function runCell(cell: Cell, tamper?: Tamper, checks: readonly Check[] = CHECKS): Promise<CellResult> {
  const expected = readExpected(cell)
  if (expected === undefined) return { status: 'blank', problems: ['no golden data'], done: [] }
  if ('refused' in expected) return { status: 'peft-refuses', message: expected.refused, problems: [], done: [] }
  const run = new CellRun(cell, expected, checks)
  tamper?.(run.files)
  const refusal = LOWRANK_REFUSES[cell.option]
  if (refusal?.where(cell)) return run.refusal(refusal)
  try {
    await run.all()
  } catch (error) {
    run.problems.push(`stopped: ${error instanceof Error ? error.message : String(error)}`)
  }
  const { problems, done } = run
  const { mergeRefused, isMergeWrong } = expected
  const message = mergeRefused && `${isMergeWrong ? 'PEFT’s merge is wrong' : 'PEFT cannot merge it'}: ${mergeRefused}`
  return { status: problems.length === 0 ? 'pass' : 'fail', ...(message && { message }), problems, done }
}

class CellRun {
  readonly problems: string[] = []
  readonly done: Check[] = []
  readonly files: MemoryDirectory
  readonly #cell: Cell
  readonly #expected: Expected
  readonly #checks: readonly Check[]

  constructor(cell: Cell, expected: Expected, checks: readonly Check[]) {
    this.#cell = cell
    this.#expected = expected
    this.#checks = checks
    this.files = readFolder(path.join(cell.folder, 'adapter'))
  }

  async all(): Promise<void> {
    const golden = await cellTensors(this.#cell)
    const adapter = await loadAdapter(this.#folder())
    if (this.#checks.includes('counts')) {
      this.#counts(await inspectAdapter(adapter))
      this.#counts(await inspectAdapter(this.#folder()))
      this.done.push('counts')
    }
    if (this.#checks.includes('forward')) await this.#forward(adapter, golden)
    if (this.#expected.mergeRefused === undefined) await this.#merge(golden)
    else await this.#mergeRefused()
    if (this.#checks.includes('file')) await this.#file(adapter)
  }

  /** Checks a cell that lowrank refuses: the error must say why. */
  async refusal({ message, reason }: { message: RegExp; reason: string }): Promise<CellResult> {
    const result = { status: 'lowrank-refuses' as const, message: reason, problems: [] as string[], done: [] }
    try {
      await loadAdapter(this.#folder())
      result.problems.push('loaded, although it should be refused')
    } catch (error) {
      const text = error instanceof Error ? error.message : String(error)
      if (!message.test(text)) result.problems.push(`refused with another message: ${text}`)
    }
    return result
  }

  #folder(): MemoryDirectory {
    const inner = [...this.files.files].flatMap(([name, bytes]) => {
      const [folder, file] = name.split('/')
      return file === undefined ? [] : [[file, bytes, folder] as const]
    })
    if (inner.length === 0) return this.files
    return new MemoryDirectory(Object.fromEntries(inner), inner[0][2])
  }

  #problem(check: Check, text: string): void {
    this.problems.push(`${check}: ${text}`)
  }

  #equal(check: Check, what: string, got: unknown, expected: unknown): void {
    const [own, theirs] = [JSON.stringify(got), JSON.stringify(expected)]
    if (own !== theirs) this.#problem(check, `${what}: expected ${theirs}, got ${own}`)
  }

  /** Compares the report of inspect, for the adapter in memory and for its folder. */
  #counts(report: AdapterReport): void {
    const { trainableParams, layers } = this.#expected
    this.#equal('counts', 'trained parameters', report.trainableParams, trainableParams)
    this.#equal('counts', 'layers', report.layers.map(({ name }) => name).sort(), layers.map(({ name }) => name).sort())
    for (const layer of layers) {
      const own = report.layers.find(({ name }) => name === layer.name)
      if (own === undefined) continue
      const { name, kind, rank, alpha } = layer
      this.#equal('counts', name, [own.kind, own.rank, own.alpha], [kind, rank, alpha])
      for (const field of ['scaling', 'normA', 'normB', 'normDelta'] as const) {
        const error = Math.abs(own[field] / layer[field] - 1)
        if (!(error < (field === 'scaling' ? 1e-15 : 1e-9)))
          this.#problem('counts', `${field} of ${name}: ${error} off`)
      }
    }
  }

  /** Compares each adapted module in f32: its output before and after merging, and its weight. */
  async #forward(adapter: LoraAdapter, golden: ReadonlyMap<string, Tensor>): Promise<void> {
    const base = await this.#baseTensors()
    for (const expected of this.#expected.layers) {
      const { name, kind, weight } = expected
      const [input, output] = ['input', 'output'].map((what) => golden.get(`${what}.${name}`))
      const module = moduleOf(adapter, expected, base.get(weight)!)
      if (module === undefined) {
        this.#problem('forward', `no layer ${name} of kind ${kind}`)
        continue
      }
      if (kind !== 'parameter') this.#close('forward', name, module.forward(input!), output!.data)
      if (this.#expected.mergeRefused !== undefined) continue
      const merged = golden.get(kind === 'parameter' ? `merged.${name}` : `merged.${name}.weight`)
      this.#close('merge', `${name}.effectiveWeight`, module.effectiveWeight(), merged!.data)
      if (module.merge === undefined) continue
      module.merge()
      this.#close('forward', `${name}, merged`, module.forward(input!), output!.data)
    }
    this.done.push('forward')
  }

  /** Compares the merged checkpoint, in the base's type and in 16 bits. */
  async #merge(golden: ReadonlyMap<string, Tensor>): Promise<void> {
    const stored = this.#storedDtype()
    const types: [Exclude<Check, 'counts' | 'forward' | 'file'>, FloatDtype][] =
      stored === 'fp32'
        ? [
            ['merge', 'fp32'],
            ['bf16', 'bf16'],
            ['f16', 'fp16'],
          ]
        : [[stored === 'fp16' ? 'f16' : 'bf16', stored]]
    const base = await this.#baseTensors()
    for (const [check, dtype] of types) {
      if (!this.#checks.includes(check)) continue
      const from = await baseFolder(this.#cell, this.#expected, stored)
      const out = new MemoryDirectory({}, 'out')
      await mergeCheckpoint(from, await this.#mergeable(from), out, { outDtype: dtype, tied: this.#tiedPolicy() })
      const got = modelTensors(from, await readTensors(out.files.get('model.safetensors')!, 'merged'))
      const expected = this.#untied(base)
      this.#equal(check, 'tensors', [...got.keys()].sort(), [...expected.keys()].sort())
      for (const [name, original] of expected) {
        const merged = golden.get(`merged.${name}`)
        const own = got.get(name)
        if (own === undefined) continue
        if (merged === undefined) this.#rounded(check, name, own.data, original.data, dtype, 0)
        else if (dtype === 'fp32') this.#close('merge', name, own.data, merged.data)
        else this.#rounded(check, name, own.data, merged.data, dtype, TOLERANCES.merge * largest(merged.data))
      }
      this.done.push(check)
    }
  }

  /** The adapter's folder, or the plain adapter for the original base if its initialization changed the base. */
  async #mergeable(base: MemoryDirectory): Promise<MergeAdapter> {
    const adapter = await loadAdapter(this.#folder())
    return changesBase(adapter.config.init) ? convertToPlain(adapter, base) : this.#folder()
  }

  /** PEFT's rule: a merge changes both uses of a tied weight, but a saved copy of one use unties them. */
  #tiedPolicy(): TiedPolicy {
    const { architecture, option } = this.#cell
    if (this.#expected.base !== 'tied') return 'untie'
    // T5's `shared` is the weight itself, not a use of it.
    return option === 'tied-saved' && architecture !== 't5' ? 'untie' : 'keep'
  }

  /** The base's tensors. If the output layer is no longer tied, it gets a copy of the original tied weight. */
  #untied(base: ReadonlyMap<string, Tensor>): ReadonlyMap<string, Tensor> {
    const embedding = [...base].find(([name]) => /(embed_tokens|wte|word_embeddings)\.weight$/.test(name))
    if (this.#expected.base !== 'tied' || this.#tiedPolicy() !== 'untie' || embedding === undefined) return base
    const bias = base.get('cls.predictions.bias')
    if (bias === undefined) return new Map([...base, ['lm_head.weight', embedding[1]]])
    const head = 'cls.predictions.decoder'
    return new Map([...base, [`${head}.weight`, embedding[1]], [`${head}.bias`, bias]])
  }

  async #mergeRefused(): Promise<void> {
    try {
      await mergeCheckpoint(await baseFolder(this.#cell, this.#expected, 'fp32'), this.#folder(), new MemoryDirectory())
    } catch {
      this.done.push('merge')
      return
    }
    this.#problem('merge', 'merged, although PEFT refuses to')
  }

  /** Saves the folder again: the weights must have the same bytes, and the config the same content. */
  async #file(adapter: LoraAdapter): Promise<void> {
    const [own, saved] = [this.#folder(), new MemoryDirectory()]
    await saveAdapter(adapter, saved)
    const [weights, again] = [own, saved].map(({ files }) => files.get('adapter_model.safetensors'))
    if (weights === undefined) await this.#sameTensors(adapter, saved)
    else if (Buffer.compare(await withoutCopies(weights), again!) !== 0) this.#problem('file', 'other bytes')
    const [before, after] = [own, saved].map(({ files }) => {
      return JSON.parse(new TextDecoder().decode(files.get('adapter_config.json')))
    })
    for (const key of new Set([...Object.keys(before), ...Object.keys(after)])) {
      this.#equal('file', key, sorted(after[key]), sorted(before[key]))
    }
    this.done.push('file')
  }

  /** Compares the tensors of a file that was in another format and is now a safetensors file. */
  async #sameTensors(adapter: LoraAdapter, saved: MemoryDirectory): Promise<void> {
    const [before, after] = [
      JSON.stringify(await inspectAdapter(adapter)),
      JSON.stringify(await inspectAdapter(await loadAdapter(saved))),
    ]
    this.#equal('file', 'content', after, before)
  }

  #storedDtype(): FloatDtype {
    return this.#cell.option === 'bf16' ? 'bf16' : this.#cell.option === 'f16' ? 'fp16' : 'fp32'
  }

  async #baseTensors(): Promise<Map<string, Tensor>> {
    const folder = await baseFolder(this.#cell, this.#expected, this.#storedDtype())
    return modelTensors(folder, await readTensors(folder.files.get('model.safetensors')!, 'base'))
  }

  #close(check: keyof typeof TOLERANCES, what: string, got: ArrayLike<number>, expected: Float32Array): void {
    if (got.length !== expected.length) this.#problem(check, `${what}: ${got.length} values`)
    let error = 0
    for (let i = 0; i < got.length; i++) error = Math.max(error, Math.abs(got[i] - expected[i]))
    error /= largest(expected)
    if (!(error <= TOLERANCES[check])) this.#problem(check, `${what}: ${error} off`)
  }

  /**
   * Checks values that are rounded once from numbers within `slack` of the exact ones. Rounding keeps the order, so
   * they must lie between the rounded bounds.
   */
  #rounded(check: Check, name: string, got: Float32Array, exact: Float32Array, dtype: FloatDtype, slack: number): void {
    const round = (values: Float32Array) => decodeFloats(encodeFloats(values, dtype), dtype)
    const [low, high] = [round(exact.map((value) => value - slack)), round(exact.map((value) => value + slack))]
    const wrong = got.findIndex((value, i) => !(low[i] <= value && value <= high[i]))
    if (wrong >= 0) this.#problem(check, `${name}[${wrong}] is ${got[wrong]}, not ${exact[wrong]} rounded once`)
  }
}

/** An adapted module of any kind with its base. Values are in the layout in which the base stores them. */
interface Module {
  forward(input: Tensor): FloatArray
  effectiveWeight(): FloatArray
  /** Only linear layers have it, because only they hold their base in memory. */
  merge?(): void
}

function moduleOf(adapter: LoraAdapter, expected: ExpectedLayer, weight: Tensor): Module | undefined {
  const { name, kind, fanInFanOut, stride, padding, dilation } = expected
  if (kind === 'linear') {
    if (!adapter.has(name)) return undefined
    const own = (value: Matrix) => (fanInFanOut ? transpose(value) : value)
    const layer = adapter.layer(name).attachBase(own(matrix(weight)))
    return {
      forward: (input) => layer.forward(matrix(input)).data,
      effectiveWeight: () => own(layer.effectiveWeight()).data,
      merge: () => layer.merge(),
    }
  }
  if (kind === 'embedding') {
    const layer = adapter.get(name, 'embedding')
    return (
      layer && {
        forward: (input) => {
          const { data, shape } = layer.effectiveWeight(matrix(weight))
          const row = (token: number) => [...data.subarray(token * shape[1], (token + 1) * shape[1])]
          return Float64Array.from(Array.from(input.data).flatMap(row))
        },
        effectiveWeight: () => layer.effectiveWeight(matrix(weight)).data,
      }
    )
  }
  if (kind === 'convolution') {
    const layer = adapter.get(name, 'convolution')
    return (
      layer && {
        forward: (input) => {
          const { data, shape } = convolve(input, layer.effectiveWeight(weight), stride!, padding!, dilation!)
          const bias = layer.biasB?.map((value) => layer.scaling * value)
          const positions = shape[2] * shape[3]
          return bias === undefined ? data : data.map((value, i) => value + bias[Math.floor(i / positions) % shape[1]])
        },
        effectiveWeight: () => layer.effectiveWeight(weight).data as FloatArray,
      }
    )
  }
  const layer = adapter.get(name, 'parameter')
  const effectiveWeight = () => layer!.effectiveWeight(weight).data
  return layer && { forward: effectiveWeight, effectiveWeight }
}

function matrix({ data, shape }: Tensor): Matrix {
  return { data, shape: [shape[0], shape[1]] }
}

function largest(values: Float32Array): number {
  return values.reduce((size, value) => Math.max(size, Math.abs(value)), 0)
}

/**
 * With bias "all", PEFT saves the biases of modules_to_save and of the base's modules a second time, under keys that it
 * never reads. Returns the file without them, in the order in which PEFT's library writes tensors.
 */
async function withoutCopies(file: Uint8Array): Promise<Uint8Array> {
  const { source, tensors, metadata } = await parseSafetensorsHeader(new MemorySource(file))
  const kept = [...tensors.values()].filter(({ name }) => !/\.(modules_to_save|original_module)\./.test(name))
  if (kept.length === tensors.size) return file
  const result = new MemoryDirectory()
  const values = kept.map(async (info) => ({ ...info, data: await source.read(info.offset, info.byteLength) }))
  await saveSafetensors(result, 'file', await Promise.all(values), metadata)
  return result.files.get('file')!
}

/** Sorts the keys of objects and removes empty values. */
function sorted(value: unknown): unknown {
  if (Array.isArray(value) && value.length === 0) return null
  if (Array.isArray(value) || typeof value !== 'object' || value === null) return value
  return Object.fromEntries(Object.entries(value).sort(([a], [b]) => (a < b ? -1 : 1)))
}
