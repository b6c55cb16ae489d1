// Makes a vector for each text from the vectors of its tokens, in the way that the model's folder says.

import { ConfigError, DataError, NumericError } from '../../core/base/errors.js'
import { checkArgument, checkOptions, listOf, STRING } from '../../core/base/options.js'
import { joinedUp } from '../../core/base/tensor.js'
import { applyDense } from '../../model/dense-layer.js'
import { poolingsOf, textVectors, tokenVectors } from '../../model/heads/head-rows.js'
import { type Model, requireTokenizer } from '../../model/model-folder.js'
import { type Pooling, promptOf } from '../../model/sentence-modules.js'
import { floatsOf } from '../../onnx/runtime/runtime.js'
import { readGraph } from '../../onnx/view/graph.js'
import { type Mix, mixesOf } from '../adapters/choice.js'
import { EMBED_OPTIONS } from '../gen/options.js'
import type { WholeSession } from '../graphs.js'
import type { EmbedOptions, Ranges } from '../session.js'
import { encodeAll, listOfTexts, textBatches } from './batches.js'
import { checkRanges, quantized, rangesOf } from './quantize.js'

type Vector = Float32Array | Int8Array | Uint8Array

export async function calibrate(
  session: WholeSession,
  texts: readonly string[],
  options: EmbedOptions = {},
): Promise<Ranges> {
  checkArgument(texts, listOf(STRING), 'texts')
  if (texts.length === 0) throw new DataError({ where: 'texts', what: 'there are none' })
  const { ranges: _, ...others } = options
  return rangesOf((await embed(session, texts, { ...others, precision: 'float32' })) as Float32Array[])
}

export async function embed(
  session: WholeSession,
  texts: string | readonly string[],
  options: EmbedOptions = {},
): Promise<Vector | Vector[]> {
  checkOptions(options, 'embed', EMBED_OPTIONS)
  const { precision = 'float32', ranges } = options
  checkRanges(precision, ranges)
  const list = listOfTexts(texts, STRING)
  const { adapter, dimensions, normalize = true } = options
  const mixes = mixesOf(adapter, undefined)
  session.checkMixes(mixes)
  const { model } = session
  const { sentence } = model
  const graph = readGraph(model.onnx)
  const known = poolingsOf(sentence)
  const poolings = options.pooling === undefined ? known : [options.pooling]
  const prompt = options.prompt ?? prompterOf(session, mixes[0], options.inputType)
  const skipped = sentence.includesPrompt ? 0 : promptLength(model, prompt)
  const layers = await Promise.all(sentence.layers.map((layer) => layer?.()))
  const whole = options.pooling === undefined ? textVectors(graph, sentence) : undefined
  const output = whole ?? tokenVectors(graph)
  const prompted = prompt === '' ? list : list.map((text) => prompt + text)
  const encoded = encodeAll(model, prompted, options.maxLength ?? sentence.maxLength)
  const vectors: Vector[] = Array(list.length)
  for await (const batch of textBatches(model, graph, encoded, options)) {
    const { [output]: found } = await session.runGraph(undefined, batch.feeds, mixes, [output])
    const values = floatsOf(found)
    const width = found.dims[found.dims.length - 1]
    const vectorOf = (ofText: Float32Array, tokens: number) => {
      if (whole !== undefined) return ofText
      const ofTokens = ofText.subarray(0, tokens * width)
      const pooled = joinedUp(poolings.map((pooling) => pool(ofTokens, width, pooling, skipped)))
      return layers.reduce((x, layer) => (layer === undefined ? scaled(x, true) : applyDense(x, layer)), pooled)
    }
    batch.inputs.forEach((text, row) => {
      const size = values.length / found.dims[0]
      const vector = vectorOf(values.subarray(row * size, (row + 1) * size), encoded[text].inputIds.length)
      if (dimensions !== undefined && dimensions > vector.length) {
        throw new ConfigError({
          where: 'dimensions',
          what: 'larger than the vectors of the model',
          expected: `at most ${vector.length}`,
          got: String(dimensions),
        })
      }
      const whole = scaled(vector.subarray(0, dimensions), normalize)
      vectors[text] = precision === 'float32' ? whole : quantized(whole, precision, ranges)
    })
  }
  return Array.isArray(texts) ? vectors : vectors[0]
}

function prompterOf(session: WholeSession, mix: Mix, type: EmbedOptions['inputType']): string {
  const { sentence } = session.model
  const own = session.promptsOf(mix)
  if (type === undefined && Object.values({ ...sentence.prompts, ...own }).some((text) => text !== '')) {
    session.warnOnce(
      'queries and documents have different prompts: give `inputType`, or texts get the default prompt, if there is one',
    )
  }
  return promptOf(sentence, type, own)
}

/** Counts the tokens of a prompt, without the end token that the tokenizer adds after it. */
function promptLength(model: Model, prompt: string): number {
  if (prompt === '') return 0
  const [{ inputIds }] = encodeAll(model, [prompt])
  const isSpecial = requireTokenizer(model).decode([inputIds[inputIds.length - 1]]) === ''
  return inputIds.length - Number(isSpecial)
}

/** Pools like sentence-transformers' Pooling. `tokens` is (n, width); the first `skipped` tokens do not count. */
function pool(tokens: Float32Array, width: number, pooling: Pooling, skipped: number): Float32Array {
  const n = tokens.length / width
  const token = (i: number) => tokens.slice(i * width, (i + 1) * width)
  if (pooling === 'cls') return token(skipped < n ? skipped : 0)
  if (pooling === 'lasttoken') return skipped < n ? token(n - 1) : new Float32Array(width)
  const result = new Float64Array(width).fill(pooling === 'max' ? Number.NEGATIVE_INFINITY : 0)
  let total = 0
  for (let i = skipped; i < n; i++) {
    const weight = pooling === 'weightedmean' ? i + 1 : 1
    total += weight
    for (let j = 0; j < width; j++) {
      const value = tokens[i * width + j]
      result[j] = pooling === 'max' ? Math.max(result[j], value) : result[j] + weight * value
    }
  }
  const divisor = pooling === 'max' ? 1 : pooling === 'mean_sqrt_len_tokens' ? Math.sqrt(total) : total
  return Float32Array.from(result, (value) => value / Math.max(divisor, LEAST_DIVISOR))
}

const LEAST_DIVISOR = 1e-9

function scaled(vector: Float32Array, isScaled: boolean): Float32Array {
  const length = Math.sqrt(vector.reduce((sum, value) => sum + value * value, 0))
  if (!Number.isFinite(length)) {
    throw new NumericError({ where: 'embed', what: 'a vector is not finite', hint: 'Run the model in f32' })
  }
  return isScaled && length > 0 ? vector.map((value) => value / length) : vector.slice()
}
