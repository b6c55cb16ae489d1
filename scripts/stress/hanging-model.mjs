// Makes a language model that runs for hours on texts of more than 40 tokens: a Loop before its attention mask.
//   node hanging-model.mjs FOLDER

import { cp, readFile, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import {
  AttributeProto_AttributeType,
  AttributeProtoSchema,
  GraphProtoSchema,
  ModelProtoSchema,
  NodeProtoSchema,
  TensorProto_DataType,
  TensorProtoSchema,
  TypeProtoSchema,
  ValueInfoProtoSchema,
} from '../../dist/onnx/format/gen/onnx_pb.js'
import { create, fromBinary, toBinary } from '../../dist/onnx/format/protobuf.js'
import { root } from './commands.mjs'

const { BOOL, INT64 } = TensorProto_DataType
const ROUNDS_A_TOKEN = 10n ** 10n

const node = (opType, input, output, attribute = []) =>
  create(NodeProtoSchema, { opType, input, output, attribute, name: `hanging/${output[0]}` })
const scalar = (name, value) => create(TensorProtoSchema, { name, dataType: INT64, dims: [], int64Data: [value] })
const value = (name, elemType, dims = []) => {
  const shape = { dim: dims.map((dimParam) => ({ value: { case: 'dimParam', value: dimParam } })) }
  return create(ValueInfoProtoSchema, {
    name,
    type: create(TypeProtoSchema, { value: { case: 'tensorType', value: { elemType, shape } } }),
  })
}

function graphAttribute(name, g) {
  return create(AttributeProtoSchema, { name, type: AttributeProto_AttributeType.GRAPH, g })
}

function body() {
  return create(GraphProtoSchema, {
    name: 'body',
    node: [node('Identity', ['go'], ['go_on']), node('Add', ['mask', 'mask_zero'], ['mask_after'])],
    initializer: [scalar('mask_zero', 0n)],
    input: [value('round', INT64), value('go', BOOL), value('mask', INT64, ['rows', 'columns'])],
    output: [value('go_on', BOOL), value('mask_after', INT64, ['rows', 'columns'])],
  })
}

/** Makes its folder. */
export async function makeHangingModel(folder) {
  await cp(join(root, 'tests/golden/models/llama-optimum'), folder, { recursive: true })
  const file = join(folder, 'onnx/model.onnx')
  const model = fromBinary(ModelProtoSchema, await readFile(file))
  const graph = model.graph
  for (const reader of graph.node)
    reader.input = reader.input.map((name) => (name === 'attention_mask' ? 'attention_mask_late' : name))
  graph.initializer.push(scalar('hang_free', 40n), scalar('hang_zero', 0n), scalar('hang_rounds', ROUNDS_A_TOKEN))
  graph.node.unshift(
    node('Size', ['input_ids'], ['hang_size']),
    node('Sub', ['hang_size', 'hang_free'], ['hang_over']),
    node('Max', ['hang_over', 'hang_zero'], ['hang_tokens']),
    node('Mul', ['hang_tokens', 'hang_rounds'], ['hang_trips']),
    node('Loop', ['hang_trips', '', 'attention_mask'], ['attention_mask_late'], [graphAttribute('body', body())]),
  )
  await writeFile(file, toBinary(ModelProtoSchema, model))
  return folder
}

if (process.argv[1] === fileURLToPath(import.meta.url)) await makeHangingModel(process.argv[2])
