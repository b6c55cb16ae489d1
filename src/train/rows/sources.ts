// Who wrote a row. Rows that a provider's model wrote may be measured, but nothing learns from them before the caller
// has read the provider's terms.

import { DataError } from '../../core/base/errors.js'
import { isObject } from '../../core/base/options.js'

/** A clause of a provider's terms, in our words. */
export interface Clause {
  readonly text: string
  readonly url: string
  /** The day on which we read what pages quote of it. */
  readonly read: string
}

const NO_LAWYERS = 'We are no lawyers: read it'

/** What providers say about training on what their models wrote. */
export const CLAUSES: Readonly<Record<string, Clause>> = {
  openai: {
    text: `OpenAI’s business terms do not allow you to use what its models write to develop models that compete with its products, with exceptions, such as models that sort or classify and are not given to others. ${NO_LAWYERS}`,
    url: 'https://openai.com/policies/services-agreement/',
    read: '2026-12-02',
  },
  azure: {
    text: `Microsoft’s product terms for Azure OpenAI limit what you may do with what the models write, among others to develop models that compete. ${NO_LAWYERS}`,
    url: 'https://www.microsoft.com/licensing/terms/product/ForOnlineServices',
    read: '2026-12-02',
  },
  together: {
    text: `Together’s terms, and the license of the model that wrote an answer, say what you may train on it. ${NO_LAWYERS}`,
    url: 'https://www.together.ai/terms-of-service',
    read: '2026-12-02',
  },
}

/** Who wrote a row, such as "openai, ft:gpt-4.1-mini:acme::abc"; undefined for a row of the owner. */
export function writerOf(row: unknown): string | undefined {
  const { source } = isObject(row) ? row : {}
  if (!isObject(source) || typeof source.provider !== 'string' || source.provider === 'owner') return undefined
  return [source.provider, source.model].filter((part) => typeof part === 'string').join(', ')
}

/** @throws DataError with the clause, if a provider's model wrote the row and `termsRead` is not true */
export function checkWriter(row: unknown, where: string, termsRead: boolean | undefined): void {
  const writer = writerOf(row)
  if (writer === undefined || termsRead) return
  const { text, url, read } = CLAUSES[writer.split(', ')[0]] ?? {}
  throw new DataError({
    where,
    what: `a provider’s model wrote it (${writer}), and its terms may not allow you to train on it`,
    ...(text !== undefined && { expected: `${text}: ${url} (${read})` }),
    hint: '`termsRead: true` trains on such rows, after you have read the terms',
  })
}
