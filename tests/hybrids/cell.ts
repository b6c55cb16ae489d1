// Compares a model from an exporter with PEFT's numbers: sessions, merges, losses, gradients and steps.

import { existsSync, readFileSync } from 'node:fs'
import {
  type Feeds,
  type LoraAdapter,
  loadAdapter,
  loadModel,
  MemoryDirectory,
  type Model,
} from '../../src/api/node.js'
import { NodeDirectory } from '../../src/files/io/node/files.js'
import { parseSafetensorsHeader, readTensorF32, type SafetensorsFile } from '../../src/files/safetensors.js'
import { parameterKeys } from '../../src/lora/peft/parameters.js'
import { merge } from '../../src/merge/merge.js'
import { openEngine } from '../../src/onnx/runtime/host.js'
import { floatsOf } from '../../src/onnx/runtime/runtime.js'
import { ModelSession } from '../../src/run/model-session.js'
import { TrainEngine } from '../../src/train/engine/engine.js'
import { readParameters } from '../../src/train/engine/parameters.js'
import { TrainingSessions } from '../../src/train/engine/sessions.js'
import { joinGraphs } from '../../src/train/graph/joined-graph.js'
import { resolveSettings } from '../../src/train/settings.js'
import { causalLm } from '../../src/train/tasks/causal-lm.js'
import { type GoldenBatch, transposed } from '../model/golden.js'
import { inThread } from '../run/models.js'
import { int64 } from '../several-graphs.js'
import { takeStep } from '../train/take-step.js'

export interface Numbers {
  readonly batches: Readonly<Record<string, GoldenBatch>>
  readonly loss: Readonly<Record<string, number>>
  readonly adamwLosses: readonly number[]
  readonly adamw: { lr: number; betas: number[]; eps: number; weightDecay: number; maxGradNorm: number }
}

export interface Cell {
  readonly model: Model
  readonly adapter: LoraAdapter
  readonly numbers: Numbers
  readonly tensors: SafetensorsFile
  close(): Promise<void>
}

/** Opens a cell. `folder` is the folder of the family, which contains the exporter's model. */
export async function openCell(folder: string, exporter: string): Promise<Cell> {
  const model = await loadModel(`${folder}/${exporter}`, { runtime: inThread })
  // An exporter may need other settings of the model. Then its folder has its own numbers.
  const place = existsSync(`${folder}/${exporter}/numbers.json`) ? `${folder}/${exporter}` : folder
  const source = await new NodeDirectory(place).open('numbers.safetensors')
  return {
    model,
    adapter: await loadAdapter(`${folder}/adapter`),
    numbers: JSON.parse(readFileSync(`${place}/numbers.json`, 'utf8')),
    tensors: await parseSafetensorsHeader(source),
    async close() {
      await source.close()
      await model.close()
    },
  }
}

/** Returns the largest difference of logits at tokens, relative to the largest value. */
function difference(got: ArrayLike<number>, wanted: ArrayLike<number>, { attentionMask }: GoldenBatch): number {
  const width = wanted.length / attentionMask.flat().length
  let [error, largest] = [got.length === wanted.length ? 0 : Number.POSITIVE_INFINITY, 0]
  for (const [token, isReal] of attentionMask.flat().entries()) {
    if (isReal === 0) continue
    for (let i = token * width; i < (token + 1) * width; i++) {
      error = Math.max(error, Math.abs(got[i] - wanted[i]))
      largest = Math.max(largest, Math.abs(wanted[i]))
    }
  }
  return error / largest
}

type Choice = string | null | (string | null)[]

/** Runs the model on tokens. If its decoder reads vectors, another graph makes them first. */
export async function logitsOf(session: ModelSession<Model>, feeds: Feeds, adapter: Choice): Promise<Float32Array> {
  const { input_ids, ...others } = feeds
  const hasParts = session.graphs.includes('embed_tokens')
  const first = hasParts ? await session.run({ input_ids }, { graph: 'embed_tokens', adapter }) : { input_ids }
  const { logits } = await session.run({ ...first, ...others }, { adapter })
  return floatsOf(logits)
}

async function worstOf(cell: Cell, session: ModelSession<Model>, adapters: readonly (string | null)[], name: string) {
  let worst = 0
  for (const adapter of adapters) {
    for (const [key, batch] of Object.entries(cell.numbers.batches)) {
      const dims = [batch.inputIds.length, batch.inputIds[0].length]
      const feeds = {
        input_ids: int64(batch.inputIds.flat(), dims),
        attention_mask: int64(batch.attentionMask.flat(), dims),
      }
      const logits = await logitsOf(session, feeds, adapter)
      const { data } = await readTensorF32(
        cell.tensors,
        `${key}/${adapter === null && name === '' ? 'base' : 'adapted'}`,
      )
      worst = Math.max(worst, difference(logits, data, batch))
    }
  }
  return worst
}

export async function sessionDifference(cell: Cell): Promise<number> {
  const session = await ModelSession.open(cell.model, { adapters: { own: cell.adapter } })
  try {
    return await worstOf(cell, session, [null, 'own'], '')
  } finally {
    await session.dispose()
  }
}

export async function mergeDifference(cell: Cell): Promise<number> {
  const out = new MemoryDirectory({}, 'out')
  await merge({ base: { directory: cell.model.directory }, adapters: cell.adapter, out })
  const merged = await ModelSession.open(await loadModel(out, { runtime: inThread }), {}, true)
  try {
    return await worstOf(cell, merged, [null], 'merged')
  } finally {
    await merged.dispose()
  }
}

/**
 * Returns the largest difference of a merged checkpoint's tensors from PEFT's, relative to a tensor's largest value.
 */
export async function checkpointDifference(folder: string): Promise<number> {
  const out = new MemoryDirectory({}, 'out')
  await merge({
    base: { directory: new NodeDirectory(`${folder}/source`) },
    adapters: await loadAdapter(`${folder}/adapter`),
    out,
  })
  const wanted = await parseSafetensorsHeader(await new NodeDirectory(`${folder}/merged`).open('model.safetensors'))
  const got = await parseSafetensorsHeader(await out.open('model.safetensors'))
  let worst = [...got.tensors.keys()].sort().join() === [...wanted.tensors.keys()].sort().join() ? 0 : Infinity
  for (const name of wanted.tensors.keys()) {
    const [a, b] = [await readTensorF32(got, name), await readTensorF32(wanted, name)]
    const largest = b.data.reduce((most, value) => Math.max(most, Math.abs(value)), 1e-9)
    b.data.forEach((value, i) => {
      worst = Math.max(worst, Math.abs(a.data[i] - value) / largest)
    })
  }
  await wanted.source.close()
  return worst
}

export interface TrainDifferences {
  /** The largest absolute difference of the losses of batches and steps. */
  readonly loss: number
  /** The largest difference ‖a − b‖/‖b‖ of a gradient, and the name of its tensor. */
  readonly gradient: number
  readonly worst: string
}

/** Opens the training of a cell's adapter. */
async function openTraining({ model: whole, numbers }: Cell, adapter: LoraAdapter) {
  const model = await joinGraphs(whole)
  const engine = await openEngine(model.runtime, 'train', async () => TrainEngine)
  const open = causalLm.open(model, [])
  const parts = { model, open: open as never, adapter, modules: undefined, settings: resolveSettings({ threads: 1 }) }
  const sessions = await TrainingSessions.create(parts, engine.remote)
  const names = sessions.parameters.map(({ name }) => name)
  const { betas, eps, weightDecay, maxGradNorm } = numbers.adamw
  const optimizer = { beta1: betas[0], beta2: betas[1], epsilon: eps, weightDecay }
  const start = async (parameters = readParameters(adapter, names)) => {
    const zeros = () => parameters.map(({ length }) => new Float32Array(length))
    const state = { parameters, firstMoments: zeros(), secondMoments: zeros(), updates: 0 }
    await engine.remote.start({ parameters: sessions.parameters, optimizer, maxGradNorm }, state)
  }
  const batches = Object.entries(numbers.batches).map(([key, { inputIds, attentionMask, labels }]) => {
    const lengths = attentionMask.map((row) => row.reduce((sum, entry) => sum + entry, 0))
    const cut = (row: number[], i: number) => Int32Array.from(row.slice(0, lengths[i]))
    const examples = inputIds.map((row, i) => ({ inputIds: cut(row, i), labels: cut(labels[i], i) }))
    return { key, feeds: open.collate(examples, inputIds[0].length), normalizer: open.normalizer(examples) }
  })
  const lossOf = async ({ feeds, normalizer }: (typeof batches)[number]) => {
    const evaluation = await sessions.evaluationPass(feeds, normalizer)
    const { loss } = await engine.remote.forward(evaluation, [evaluation.loss])
    return Number(loss.data[0])
  }
  return { engine, sessions, names, start, batches, lossOf }
}

export async function trainDifferences(cell: Cell): Promise<TrainDifferences> {
  const { numbers, tensors } = cell
  const { engine, sessions, start, batches, lossOf } = await openTraining(cell, cell.adapter)
  const keys = parameterKeys(cell.adapter.parts('parameter').map(({ name }) => name))
  try {
    await start()
    let [loss, gradient, worst] = [0, 0, '']
    for (const batch of batches) {
      const { key, feeds, normalizer } = batch
      loss = Math.max(loss, Math.abs((await lossOf(batch)) - numbers.loss[key]))
      const pass = await sessions.trainingPass(feeds, { normalizer, step: 0, run: 0 })
      const outputs = sessions.parameters.map((parameter) => parameter.gradient)
      const gradients = await engine.remote.forward(pass, outputs)
      for (const { name, gradient: output } of sessions.parameters) {
        const [, layer, factor] = /^(.*)\.([AB])$/.exec(name) as RegExpExecArray
        const file = keys.get(layer) ?? layer
        const { data, shape } = await readTensorF32(tensors, `${key}/base_model.model.${file}.lora_${factor}.weight`)
        const wanted = factor === 'B' ? transposed(data, shape) : data
        const error = distance(gradients[output].data as Float32Array, wanted)
        if (!(error <= gradient)) [gradient, worst] = [error, `${key} ${name}`]
      }
    }
    for (const [step, wanted] of numbers.adamwLosses.entries()) {
      const { feeds, normalizer } = batches[step % batches.length]
      const pass = await sessions.trainingPass(feeds, { normalizer, step, run: 0 })
      const result = await takeStep(engine.remote, [pass], numbers.adamw.lr)
      loss = Math.max(loss, Math.abs(result.loss - wanted))
    }
    return { loss, gradient, worst }
  } finally {
    await engine.remote.dispose()
  }
}

/** Returns the loss of the last batch for each module, with B = 0 in this module. */
export async function lossesWithoutBranch(cell: Cell): Promise<Map<string, number>> {
  const { engine, names, start, batches, lossOf } = await openTraining(cell, cell.adapter)
  const losses = new Map<string, number>()
  try {
    for (const [i, name] of names.entries()) {
      if (!name.endsWith('.B')) continue
      const parameters = readParameters(cell.adapter, names)
      parameters[i].fill(0)
      await start(parameters)
      losses.set(name.slice(0, -2), await lossOf(batches[batches.length - 1]))
    }
    return losses
  } finally {
    await engine.remote.dispose()
  }
}

/** ‖a − b‖/‖b‖ */
function distance(a: ArrayLike<number>, b: ArrayLike<number>): number {
  let [error, size] = [0, 0]
  for (let i = 0; i < b.length; i++) {
    error += (a[i] - b[i]) ** 2
    size += b[i] ** 2
  }
  return Math.sqrt(error / size)
}
