// Texts in, vectors out: one for each text, made of those of its tokens as the model's folder says.

import { ConfigError, NumericError } from '../../base/errors.js'
import { checkOptions, STRING } from '../../base/options.js'
import type { Pooling } from '../../graph/sentence-modules.js'
import { readGraph } from '../../graph/view/graph.js'
import { floatsOf } from '../../runtime/runtime.js'
import { poolingOf, tokenVectors } from '../../tasks/heads/head-rows.js'
import { mixesOf } from '../adapters/choice.js'
import { EMBED_OPTIONS } from '../gen/options.js'
import type { WholeSession } from '../graphs.js'
import type { EmbedOptions } from '../session.js'
import { encodeAll, listOfTexts, textBatches } from './batches.js'

export async function embed(
  session: WholeSession,
  texts: string | readonly string[],
  options: EmbedOptions = {},
): Promise<Float32Array | Float32Array[]> {
  checkOptions(options, 'embed', EMBED_OPTIONS)
  const list = listOfTexts(texts, STRING)
  const { adapter, dimensions, normalize = true } = options
  const mixes = mixesOf(adapter, undefined)
  session.checkMixes(mixes, true)
  const { model } = session
  const { sentence } = model
  const graph = readGraph(model.onnx)
  const pooling = options.pooling ?? poolingOf(sentence)
  const output = tokenVectors(graph)
  const prompted = sentence.prompt === '' ? list : list.map((text) => sentence.prompt + text)
  const encoded = encodeAll(model, prompted, options.maxLength ?? sentence.maxLength)
  const vectors: Float32Array[] = Array(list.length)
  for await (const batch of textBatches(model, graph, encoded, options)) {
    const { [output]: tokens } = await session.runGraph(undefined, batch.feeds, mixes, [output])
    const values = floatsOf(tokens)
    const [, sequence, width] = tokens.dims
    if (dimensions !== undefined && dimensions > width) {
      throw new ConfigError({
        where: 'dimensions',
        what: 'more than the model has',
        expected: `at most ${width}`,
        got: String(dimensions),
      })
    }
    batch.inputs.forEach((text, row) => {
      const start = row * sequence * width
      const own = values.subarray(start, start + encoded[text].inputIds.length * width)
      vectors[text] = scaled(pooled(own, width, pooling).subarray(0, dimensions), normalize)
    })
  }
  return Array.isArray(texts) ? vectors : vectors[0]
}

function pooled(tokens: Float32Array, width: number, pooling: Pooling): Float32Array {
  if (pooling === 'cls') return tokens.slice(0, width)
  const sums = new Float64Array(width)
  for (let i = 0; i < tokens.length; i++) sums[i % width] += tokens[i]
  return Float32Array.from(sums, (sum) => (sum * width) / tokens.length)
}

function scaled(vector: Float32Array, isScaled: boolean): Float32Array {
  const length = Math.sqrt(vector.reduce((sum, value) => sum + value * value, 0))
  if (!Number.isFinite(length)) {
    throw new NumericError({ where: 'embed', what: 'a vector is not finite', hint: 'Run the model in f32' })
  }
  return isScaled && length > 0 ? vector.map((value) => value / length) : vector.slice()
}
