// Graphs that run in addition to a decoder. An encoder reads a prompt once; the decoder then starts with a first token
// of its own. An embedding graph makes the vectors for decoders that read vectors instead of tokens.

import { FileError, UnsupportedError } from '../../core/base/errors.js'
import { isCacheInput } from '../../model/inputs/cache.js'
import { HIDDEN_STATES, STATES_MASK } from '../../model/inputs/family.js'
import { encoderInputs, VECTORS } from '../../model/inputs/tokens.js'
import { type Model, startToken } from '../../model/model-folder.js'
import { type Graph, readGraph } from '../../onnx/view/graph.js'
import { typeOf } from '../../onnx/view/value-info.js'
import type { EmbeddingForm, EncoderForm } from './text-form.js'

export async function encoderForm(model: Model, decoder: Graph): Promise<EncoderForm> {
  const { generationConfig, config, padTokenId } = model
  const { roles } = encoderInputs(readGraph(await model.openGraph('encoder')))
  const forced = [generationConfig.forced_bos_token_id, config.forced_bos_token_id].find(Number.isSafeInteger)
  const startIds = [startToken(model), ...(forced === undefined ? [] : [forced as number])]
  const states = decoder.inputs.map(({ name }) => name).filter((name) => name === HIDDEN_STATES || name === STATES_MASK)
  return { role: 'encoder', roles, padTokenId, states, startIds }
}

const EMBEDDING = 'embed_tokens'

export async function embeddingForm(model: Model, { inputs }: Pick<Graph, 'inputs'>): Promise<EmbeddingForm> {
  if (!inputs.some(isCacheInput)) {
    throw new UnsupportedError({
      where: 'ONNX model',
      what: 'a decoder that reads vectors and has no key-value cache',
      expected: 'inputs past_key_values.*',
      hint: 'Take decoder_model_merged.onnx as transformers.js publishes it',
    })
  }
  const { graphs, directory, padTokenId } = model
  if (graphs[EMBEDDING] === undefined) {
    throw new FileError({
      where: directory.name,
      what: `no ${EMBEDDING}.onnx in this folder, which gives the vectors that the decoder reads`,
      got: `graphs ${Object.values(graphs).join(', ')}`,
      hint: `Copy onnx/${EMBEDDING}.onnx from where the model came from`,
    })
  }
  const embedding = readGraph(await model.openGraph(EMBEDDING))
  const { roles } = encoderInputs(embedding)
  const given = new Set(embedding.outputs.map(({ name }) => name))
  const others = inputs.map(({ name }) => name).filter((name) => name !== VECTORS && given.has(name))
  const fed = [VECTORS, ...others].map((name) => ({ name, type: typeOf(inputs.find((one) => one.name === name)!)! }))
  const takesPositions = inputs.some(({ name }) => name === 'position_ids')
  return { role: EMBEDDING, roles, padTokenId, fed, takesPositions }
}
