// A right call of every public function, class and method, with misspelled options and the right names.
// arguments.test.ts makes the calls wrong.

import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import * as lowrank from '../../src/api/node.js'
import { TRAIN_DEFAULTS } from '../../src/train/settings.js'
import { oneThread } from '../run/models.js'
import { sessionCalls } from './session-calls.js'
import { TOOL_FUNCTIONS } from './tool-calls.js'

const root = fileURLToPath(new URL('../..', import.meta.url))
const scratch = mkdtempSync(join(tmpdir(), 'lowrank-arguments-'))

const MODEL = join(root, 'tests/golden/models/llama-optimum')
const BASE = join(root, 'tests/golden/kinds/qwen2.safetensors')
const PISSA = join(root, 'tests/golden/inits/pissa-embedding-alone')

let count = 0
/** Returns a path where nothing exists. */
const place = () => join(scratch, `${count++}`)

/** Values that no argument accepts, except texts, which may be paths. */
export const wrongValues = (): unknown[] => [
  undefined,
  null,
  5,
  -1,
  Number.NaN,
  10n,
  true,
  '',
  place(),
  [],
  [1, 'a'],
  [null],
  {},
  { unrelated: 1 },
  new Map([['a', 1]]),
  new Date(0),
  () => {},
  Symbol('s'),
]

/** A call in which a test replaces a part. It may fail with an error of lowrank. */
export interface Call {
  call: (...args: never[]) => unknown
  args: () => unknown[]
  /** The index of the options among the arguments. */
  options?: number
  /** Misspelled option → the text of its error. */
  misspelled?: Record<string, RegExp>
}

const adapter = () => {
  const made = new lowrank.LoraAdapter({ rank: 1, targetModules: ['q'] })
  made.addFactors('q', [[1, 0]], [[1], [2]])
  return made
}
const layer = (config: lowrank.LoraConfigInput = {}) =>
  new lowrank.LoraLayer(
    [
      [1, 2],
      [3, 4],
    ],
    { rank: 1, ...config },
  )
const tensor = (shape: number[]) => ({ data: new Float32Array(shape.reduce((a, b) => a * b, 1)), shape })

/** The model, and the session whose methods are called. `open` sets both. */
export const opened = {} as { model: lowrank.Model; session: lowrank.AdapterSession }

export async function open(): Promise<void> {
  opened.model = await lowrank.loadModel(MODEL, { runtime: { module: oneThread } })
  opened.session = await lowrank.openSession(opened.model, {})
}

export async function close(): Promise<void> {
  await opened.session.dispose()
  await opened.model.close()
  rmSync(scratch, { recursive: true, force: true })
}

/** A runtime that opens nothing, so that calls with right arguments take no time. */
const noRuntime = {
  module: { ...oneThread, InferenceSession: { create: () => Promise.reject(new Error('not here')) } },
}

const merging = {
  adaptors: /adapters/,
  maxShardByte: /maxShardBytes/,
  overwite: /overwrite/,
  onProgress: /on: \{ progress/,
}

export const FUNCTIONS: Record<string, Call> = {
  loadModel: {
    call: lowrank.loadModel,
    args: () => [place(), { runtime: noRuntime, dtype: 'fp32', onnxPath: 'model.onnx' }],
    options: 1,
    misspelled: { runTime: /runtime/, onnx_path: /onnxPath/, dType: /dtype/ },
  },
  loadAdapter: {
    call: lowrank.loadAdapter,
    args: () => [PISSA, { name: 'default' }],
    options: 1,
    misspelled: { nam: /name/ },
  },
  saveAdapter: {
    call: lowrank.saveAdapter,
    args: () => [adapter(), place(), { dtype: 'fp32' }],
    options: 2,
    misspelled: { dtyp: /dtype/ },
  },
  toPlain: {
    call: lowrank.toPlain,
    args: () => [PISSA, { base: BASE, initial: undefined }],
    options: 1,
    misspelled: { bas: /base/, inital: /initial/ },
  },
  ...TOOL_FUNCTIONS,
  inspect: {
    call: lowrank.inspect,
    args: () => [PISSA, { base: BASE }],
    options: 1,
    misspelled: { dtyp: /dtype/ },
  },
  train: {
    call: lowrank.train,
    args: () => [
      {
        model: opened.model,
        data: [],
        evalData: [],
        task: 'causal-lm',
        taskOptions: {},
        adapter: undefined,
        modules: {},
        out: place(),
        resume: false,
        overwrite: false,
        signal: new AbortController().signal,
        on: {},
        ...TRAIN_DEFAULTS,
        maxSteps: 1,
      },
    ],
    options: 0,
    misspelled: {
      lerningRate: /learningRate/,
      max_steps: /maxSteps/,
      rank: /config\.rank/,
      targetModule: /config\.targetModules/,
      step: /on\.step/,
    },
  },
  mineNegatives: {
    call: lowrank.mineNegatives,
    args: () => [{ model: opened.model, data: [{ query: 'a', passage: 'b' }], corpus: [{ id: 1, text: 'c' }], on: {} }],
    options: 0,
    misspelled: { numNegative: /numNegatives/ },
  },
  evaluate: {
    call: lowrank.evaluate,
    args: () => [{ model: opened.model, data: [], threads: 1 }],
    options: 0,
    misspelled: { adaptors: /adapters/, max_new_tokens: /maxNewTokens/, resample: /resamples/ },
  },
  checkData: {
    call: lowrank.checkData,
    args: () => [
      {
        model: opened.model,
        data: [{ text: 'a' }],
        task: 'causal-lm',
        columns: { text: 'text' },
        maxLength: 8,
        preview: 1,
      },
    ],
    options: 0,
    misspelled: { max_length: /maxLength/, colums: /columns/ },
  },
  trainingTasks: { call: lowrank.trainingTasks, args: () => [opened.model] },
  openSession: {
    call: lowrank.openSession,
    args: () => [
      { ...opened.model, runtime: noRuntime },
      {
        adapters: {},
        device: 'cpu',
        modules: {},
        threads: 1,
        memory: 'low',
        optimization: 'all',
        yieldProcessors: false,
        profilePrefix: undefined,
      },
    ],
    options: 1,
    misspelled: { adapter: /adapters/, devise: /device/, optimisation: /optimization/ },
  },
  openTrainer: {
    call: lowrank.openTrainer,
    args: () => [
      { ...opened.model, runtime: noRuntime },
      { config: {}, modules: {}, device: 'cpu', threads: 1, memory: 'low', batchSize: 1, maxLength: 8, entropy: true },
    ],
    options: 1,
    misspelled: { confg: /config/, batch_size: /batchSize/, devise: /device/ },
  },
  merge: {
    call: lowrank.merge,
    args: () => [{ base: BASE, adapters: [adapter()], out: place(), tied: 'keep', dtype: 'fp32' }],
    options: 0,
    misspelled: { ...merging, dtyp: /dtype/, model: /./ },
  },
  planMerge: {
    call: lowrank.planMerge,
    args: () => [{ base: BASE, adapters: { adapter: adapter(), weight: 0.5 }, out: place() }],
    options: 0,
    misspelled: merging,
  },
  unmerge: {
    call: lowrank.unmerge,
    args: () => [{ merged: BASE, adapters: [adapter()], out: place() }],
    options: 0,
    misspelled: { ...merging, ajapters: /adapters/ },
  },
  configureHub: {
    call: lowrank.configureHub,
    args: () => [{ endpoint: undefined, token: undefined, on: { download: undefined, warning() {} } }],
    options: 0,
    misspelled: { endPoint: /endpoint/, onDownload: /on: \{ download/, onWarning: /on: \{ warning/ },
  },
  disposeKernels: { call: lowrank.disposeKernels, args: () => [] },
  nodeRuntime: { call: lowrank.nodeRuntime, args: () => ['onnxruntime-node'] },
  webRuntime: { call: lowrank.webRuntime, args: () => ['https://example.org/ort.mjs', 'https://example.org/ort.wasm'] },

  LoraLayer: {
    call: (...args: never[]) => new (lowrank.LoraLayer as new (...args: unknown[]) => unknown)(...args),
    args: () => [[[1, 2]], { rank: 1 }, 'name'],
    options: 1,
    misspelled: { ranks: /rank/ },
  },
  EmbeddingLora: {
    call: (...args: never[]) => new (lowrank.EmbeddingLora as new (...args: unknown[]) => unknown)(...args),
    args: () => [[[1, 2]], [[1]], { rank: 1 }, 'name', {}],
    options: 2,
    misspelled: { ranks: /rank/ },
  },
  ConvolutionLora: {
    call: (...args: never[]) => new (lowrank.ConvolutionLora as new (...args: unknown[]) => unknown)(...args),
    args: () => [tensor([1, 2, 3]), tensor([4, 1, 1]), { rank: 1 }, 'name', {}],
    options: 2,
    misspelled: { ranks: /rank/ },
  },
  ExpertLora: {
    call: (...args: never[]) => new (lowrank.ExpertLora as new (...args: unknown[]) => unknown)(...args),
    args: () => [[[1, 2]], [[1]], { rank: 1 }, 'name'],
    options: 2,
    misspelled: { ranks: /rank/ },
  },
  LoraAdapter: {
    call: (...args: never[]) => new lowrank.LoraAdapter(...args),
    args: () => [{ rank: 1 }],
    options: 0,
    misspelled: { ranks: /rank/ },
  },
  MemoryDirectory: { call: (...args: never[]) => new lowrank.MemoryDirectory(...args), args: () => [{}, 'name'] },
  FilesDirectory: {
    call: (...args: never[]) => new (lowrank.FilesDirectory as new (...args: unknown[]) => unknown)(...args),
    args: () => [[new File(['a'], 'a.txt')], 'name'],
  },
  HandleDirectory: {
    call: (...args: never[]) => new (lowrank.HandleDirectory as new (...args: unknown[]) => unknown)(...args),
    args: () => [{ name: 'a', kind: 'directory', getFileHandle() {}, getDirectoryHandle() {}, entries() {} }, 'name'],
  },
  StreamDirectory: {
    call: (...args: never[]) => new (lowrank.StreamDirectory as new (...args: unknown[]) => unknown)(...args),
    args: () => [() => undefined, 'name'],
  },
}

/** Calls of methods of sessions, layers and adapters. */
export const METHODS: Record<string, Call> = {
  ...sessionCalls(opened, adapter),
  'LoraLayer.fromFactors': {
    call: (...args) => (lowrank.LoraLayer.fromFactors as (...args: unknown[]) => unknown)(...args),
    args: () => [[[1, 2]], [[1]], { rank: 1 }, 'name', {}],
  },
  'LoraLayer.ofShape': {
    call: (...args) => (lowrank.LoraLayer.ofShape as (...args: unknown[]) => unknown)(...args),
    args: () => [[2, 2], { rank: 1 }, 'name'],
  },
  'layer.forward': { call: (...args) => layer().forward(...(args as [never])), args: () => [[[1, 2]]] },
  'layer.attachBase': {
    call: (...args) => layer().attachBase(...(args as [never])),
    args: () => [
      [
        [1, 2],
        [3, 4],
      ],
    ],
  },
  'layer.backward': {
    call(...args) {
      const made = layer()
      made.forward([[1, 2]])
      return made.backward(...(args as [never]))
    },
    args: () => [[[1, 2]]],
  },
  'adapter.addLayer': {
    call: (...args) => adapter().addLayer(...(args as [never, never])),
    args: () => ['k', [[1, 2]]],
  },
  'adapter.addLayerOfShape': {
    call: (...args) => adapter().addLayerOfShape(...(args as [never, never])),
    args: () => ['k', [2, 2]],
  },
  'adapter.addFactors': {
    call: (...args) => adapter().addFactors(...(args as [never, never, never, never])),
    args: () => ['k', [[1, 2]], [[1]], {}],
  },
  'adapter.addReplacement': {
    call: (...args) => adapter().addReplacement(...(args as [never, never])),
    args: () => ['a.weight', tensor([2]), { isTrained: true, key: 'a.weight' }],
    options: 2,
    misspelled: { isTraned: /isTrained/ },
  },
  'adapter.addTokenRows': {
    call: (...args) => adapter().addTokenRows(...(args as [never, never, never])),
    args: () => ['embed', [1], tensor([1, 2])],
  },
  'adapter.get': { call: (...args) => adapter().get(...(args as [never])), args: () => ['q', 'linear'] },
  'adapter.parts': { call: (...args) => adapter().parts(...args), args: () => ['linear'] },
  'adapter.remove': { call: (...args) => adapter().remove(...(args as [never])), args: () => ['q'] },
  'adapter.layer': { call: (...args) => adapter().layer(...(args as [never])), args: () => ['q'] },
  'adapter.has': { call: (...args) => adapter().has(...(args as [never])), args: () => ['q'] },
}
