// The bundled model's ONNX file beside its checkpoint: the same weights, each once.

import { expect, it } from 'vitest'
import { NodeDirectory } from '../../../src/files/io/node/files.js'
import { parseSafetensorsHeader, readTensorF32 } from '../../../src/files/safetensors.js'
import { findLinears } from '../../../src/model/match/linears.js'
import { Graph } from '../../../src/onnx/view/graph.js'
import { openModel, transposed, UNION } from '../../model/golden.js'
import { readWeight } from '../../onnx/format/onnx-models.js'

it('holds every weight of the checkpoint once', async () => {
  const onnx = await openModel(UNION)
  const checkpoint = await parseSafetensorsHeader(await new NodeDirectory(UNION).open('model.safetensors'))
  const linears = new Map(findLinears(new Graph(onnx.proto)).map((linear) => [linear.weight, linear]))
  const left = new Set(checkpoint.tensors.keys())
  for (const { name } of onnx.proto.graph?.initializer ?? []) {
    const linear = linears.get(name)
    const tensor = linear === undefined || linear.isHead ? name : `${linear.name}.weight`
    expect(left.delete(tensor), tensor).toBe(true)
    const { data, shape } = await readTensorF32(checkpoint, tensor)
    const values = linear === undefined || linear.transposed ? data : transposed(data, shape)
    expect(Buffer.compare(await readWeight(onnx, name), new Uint8Array(values.buffer)), tensor).toBe(0)
  }
  expect([...left]).toEqual([])
  expect(linears.get('model.embed_tokens.weight')?.name).toBe('lm_head')
  await checkpoint.source.close()
  await onnx.close()
})
