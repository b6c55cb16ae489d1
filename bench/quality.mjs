// How well a model predicts a text: what bench/serve-llama.mjs and bench/quantized/accuracy.mjs print beside speeds.
import { readFileSync } from 'node:fs'

/** Tokens below the most likely ones count as the last of these. llama-server tells no others. */
export const LIKELIEST = 2000

/** The first tokens of a text file. The default text is this project's own, which no model has learned. */
export function heldOut(tokenizer, count, file = new URL('../docs/training.md', import.meta.url)) {
  return tokenizer.encode(readFileSync(file, 'utf8').slice(0, 20 * count)).slice(0, count)
}

/** The likeliest token after each token but the last, and ln(probability) of the token that follows. */
export async function predictionsOf(session, ids) {
  const { logits } = await session.run(
    { input_ids: { type: 'int64', data: BigInt64Array.from(ids, BigInt), dims: [1, ids.length] } },
    { outputNames: ['logits'] },
  )
  const vocabulary = logits.dims[2]
  return ids.slice(1).map((next, i) => {
    const row = Float32Array.from(logits.data.subarray(i * vocabulary, (i + 1) * vocabulary))
    const likeliest = row.indexOf(row.reduce((most, value) => Math.max(most, value)))
    const sum = row.reduce((total, value) => total + Math.exp(value - row[likeliest]), 0)
    const least = row.toSorted()[Math.max(0, vocabulary - LIKELIEST)]
    return { likeliest, logprob: Math.max(row[next], least) - row[likeliest] - Math.log(sum) }
  })
}

export function perplexityOf(predictions) {
  return Math.exp(-predictions.reduce((sum, { logprob }) => sum + logprob, 0) / predictions.length)
}

/** The share of places with the same likeliest token. */
export function agreementOf(predictions, reference) {
  return predictions.filter(({ likeliest }, i) => likeliest === reference[i].likeliest).length / predictions.length
}
