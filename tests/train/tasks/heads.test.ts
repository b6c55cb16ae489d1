// Heads of each type of model: the tensors that PEFT saves, and the logits of transformers, computed in a graph and by
// a session.

import { readFileSync } from 'node:fs'
import { beforeAll, describe, expect, it } from 'vitest'
import { type Feeds, LoraAdapter } from '../../../src/api/node.js'
import { NodeDirectory } from '../../../src/files/io/node/files.js'
import { parseSafetensorsHeader, readTensorF32, type SafetensorsFile } from '../../../src/files/safetensors.js'
import { findHead } from '../../../src/model/heads/head-forms.js'
import type { HeadBase } from '../../../src/model/heads/heads.js'
import { appendHead, headTensors, placeHead } from '../../../src/model/heads/heads.js'
import { findLinears } from '../../../src/model/match/linears.js'
import { serializeModel } from '../../../src/onnx/format/model.js'
import { loadNodeRuntime } from '../../../src/onnx/runtime/node/runtime.js'
import { Builder } from '../../../src/onnx/view/builder.js'
import { headLogits, readHead } from '../../../src/run/adapters/heads.js'
import { addInput, addOutput, DataType, emptyGraph, floats, floatTensor } from '../../onnx/toolkit.js'
import { maxDifference } from '../../run/models.js'

const folder = 'tests/golden/classifier-heads'
const WIDTH = 16

interface Golden {
  models: Record<string, { task: 'SEQ_CLS' | 'TOKEN_CLS'; modulesToSave: string[]; config: Record<string, unknown> }>
}

const KINDS = { SEQ_CLS: 'text', TOKEN_CLS: 'token' } as const

const { models }: Golden = JSON.parse(readFileSync(`${folder}/golden.json`, 'utf8'))
let file: SafetensorsFile
beforeAll(async () => {
  file = await parseSafetensorsHeader(await new NodeDirectory(folder).open('heads.safetensors'))
})

/** An encoder that returns its input. */
function encoder() {
  const graph = emptyGraph(17)
  addInput(graph, 'hidden', DataType.FLOAT, ['batch', 'sequence', WIDTH])
  graph.rename(new Builder(graph, 'encoder').op('Identity', ['hidden']), 'last_hidden_state')
  addOutput(graph, 'last_hidden_state', DataType.FLOAT)
  return graph
}

/** Reads the tokens of a case with padding, and their mask. */
async function tokensOf(name: string): Promise<Feeds> {
  const feeds: Feeds = {}
  for (const input of ['input_ids', 'attention_mask']) {
    const key = `${name}:${input}`
    if (!file.tensors.has(key)) continue
    const { data, shape } = await readTensorF32(file, key)
    feeds[input] = { type: 'int64', data: BigInt64Array.from(data, BigInt), dims: shape }
  }
  return feeds
}

describe.each(Object.entries(models))('%s', (name, { task, modulesToSave, config }) => {
  const findForm = (base: HeadBase) => findHead(KINDS[task], base)
  const base = () => {
    const graph = encoder()
    return { config, graph, linears: findLinears(graph) }
  }

  async function saved(): Promise<LoraAdapter> {
    const adapter = new LoraAdapter({ rank: 1, taskType: task })
    for (const key of file.tensors.keys()) {
      if (!key.startsWith(`${name}/`)) continue
      adapter.addReplacement(key.slice(name.length + 1), await readTensorF32(file, key))
    }
    return adapter
  }

  it('has the tensors that PEFT saves', async () => {
    const form = findForm(base())!
    expect([...form.modulesToSave].sort()).toEqual([...modulesToSave].sort())
    const made = headTensors(form.layers, WIDTH, 3).map(({ layer, member, shape }) => {
      return [`${layer.module}.${member}`, shape.join()]
    })
    const wanted = (await saved()).parts('replacement').map((part) => [part.name, part.shape.join()])
    expect(Object.fromEntries(made)).toEqual(Object.fromEntries(wanted))
  })

  it("gives transformers' logits", async () => {
    const hidden = await readTensorF32(file, `${name}:hidden`)
    const logits = await readTensorF32(file, `${name}:logits`)
    const adapter = await saved()
    const own = base()
    const head = (await readHead(own, adapter))!
    const tensor = floats(DataType.FLOAT, [...hidden.data], hidden.shape)
    const tokens = await tokensOf(name)
    expect(maxDifference(headLogits(head, tensor, tokens), logits.data)).toBeLessThan(1e-5)

    const form = findForm(own)!
    const placed = placeHead(form, own, (key) => adapter.get(key, 'replacement')?.shape)!
    for (const input of Object.keys(tokens)) addInput(own.graph, input, DataType.INT64, ['batch', 'sequence'])
    const made = appendHead(new Builder(own.graph, ''), placed.input, placed.layers, (key) => {
      const part = adapter.get(key, 'replacement')
      if (part === undefined) return undefined
      return own.graph.addInitializer(floatTensor(key, DataType.FLOAT, [...part.weight.data], [...part.shape]))
    })
    own.graph.rename(made, 'logits')
    addOutput(own.graph, 'logits', DataType.FLOAT)
    const runtime = await loadNodeRuntime()
    const session = await runtime.createSession({ graph: serializeModel(own.graph.toModel()) }, { threads: 1 })
    const outputs = await session.run({ hidden: tensor, ...tokens }, ['logits'])
    expect(maxDifference(outputs.logits, logits.data)).toBeLessThan(1e-5)
    await session.dispose()
  })
})

it('is not known where the config asks for another one', () => {
  const graph = encoder()
  const of = (config: Record<string, unknown>) => findHead('text', { config, graph, linears: [] })
  expect(of({ model_type: 'modernbert', classifier_pooling: 'max' })).toBeUndefined()
  expect(of({ model_type: 'deberta', pooler_hidden_act: 'tanh' })).toBeUndefined()
  expect(of({ model_type: 'constructor' })).toBeUndefined()
})
