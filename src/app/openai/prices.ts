// What providers ask for fine-tuned models, so that a budget is kept before a request is sent. Prices change: `--prices
// FILE` takes the place of this table. It has no prices of Together's and Azure's own models.

import { ConfigError, UnsupportedError } from '../../core/base/errors.js'
import { isObject } from '../../core/base/options.js'

/** Dollars for a million tokens. */
export interface Price {
  readonly input: number
  readonly output: number
}

/** Prices by the name of the provider's model, or by the start of it. */
export interface Prices {
  readonly date: string
  readonly models: Readonly<Record<string, Price>>
}

/**
 * Fine-tuned models on OpenAI's list (developers.openai.com/api/docs/pricing) as LiteLLM 1.110.2 has it, read on the
 * day below. The Batch API costs half.
 */
export const PRICES: Prices = {
  date: '2026-12-03',
  models: {
    'gpt-4.1-nano': { input: 0.2, output: 0.8 },
    'gpt-4.1-mini': { input: 0.8, output: 3.2 },
    'gpt-4.1': { input: 3, output: 12 },
    'gpt-4o-mini': { input: 0.3, output: 1.2 },
    'gpt-4o': { input: 3.75, output: 15 },
    'gpt-3.5-turbo': { input: 3, output: 6 },
    'o4-mini': { input: 4, output: 16 },
  },
}

export const BATCH_SHARE = 0.5

/** @throws UnsupportedError for a model without a price */
export function priceOf({ models, date }: Prices, model: string): Price {
  const base = model.startsWith('ft:') ? model.split(':')[1] : model
  const [name] = Object.keys(models)
    .filter((known) => base === known || base.startsWith(`${known}-20`))
    .sort((a, b) => b.length - a.length)
  if (name !== undefined) return models[name]
  throw new UnsupportedError({
    where: model,
    what: `the prices of ${date} have no such model, so that no budget could be kept`,
    expected: Object.keys(models).join(', '),
    hint: 'Give a file with its price in `prices`',
  })
}

/** Reads a file of prices. @throws ConfigError if it is not one */
export function checkPrices(value: unknown, where: string): Prices {
  const { date, models } = isObject(value) ? value : {}
  const isPrice = (price: unknown) =>
    isObject(price) && [price.input, price.output].every((dollars) => Number(dollars) > 0)
  if (typeof date === 'string' && isObject(models) && Object.values(models).every(isPrice))
    return value as unknown as Prices
  throw new ConfigError({
    where,
    what: 'not a file of prices',
    expected:
      '{ "date": "2026-12-01", "models": { "gpt-4.1-mini": { "input": 0.8, "output": 3.2 } } }, in dollars for a million tokens',
  })
}

/** The most that a request can cost: a token has at least one byte, and the whole body counts as input. */
export function worstCase(body: { readonly max_completion_tokens: number }, { input, output }: Price): number {
  const bytes = new TextEncoder().encode(JSON.stringify(body)).length
  return (bytes * input + body.max_completion_tokens * output) / 1e6
}

/** What an answer did cost, in dollars; undefined if it does not say how many tokens it has. */
export function costIn({ usage }: Readonly<Record<string, unknown>>, { input, output }: Price): number | undefined {
  const { prompt_tokens: asked, completion_tokens: written } = isObject(usage) ? usage : {}
  const isUsage = typeof asked === 'number' && typeof written === 'number'
  return isUsage ? (asked * input + written * output) / 1e6 : undefined
}
