// The Hub's refusals. Of private, gated and missing repositories it says little to strangers.

import { type ErrorDetails, nearMisses } from '../../base/errors.js'
import type { HubSource } from '../source.js'
import { type HubConnection, HubError } from './request.js'

export interface HubRequest {
  readonly connection: HubConnection
  readonly source: HubSource
  readonly file?: string
  readonly knownIds?: readonly string[]
}

/** Other statuses below 500 do not go away by themselves. */
const PASSING = [408, 425, 429]

export function isPassing(status: number): boolean {
  return status >= 500 || PASSING.includes(status)
}

export function refusal(response: Response, asked: HubRequest): HubError {
  const { connection, source, file } = asked
  const { id, revision } = source
  const where = file === undefined ? id : `${id}/${file}`
  const { status } = response
  const code = response.headers.get('x-error-code')
  const message = response.headers.get('x-error-message') ?? undefined
  const hasToken = connection.token !== undefined
  const page = `${connection.endpoint}/${id}`
  const wrong = (kind: HubError['kind'], details: Omit<ErrorDetails, 'where'>) =>
    new HubError(kind, { where, ...details })

  if (isPassing(status)) {
    const what = status === 429 ? 'the Hub asks for fewer requests' : 'the Hub fails for now'
    const hint = status === 429 && !hasToken ? 'Wait, or set HF_TOKEN: more are allowed then' : 'Try again later'
    return wrong('unreachable', { what, got: String(status), hint })
  }
  if (code === 'GatedRepo' || (status === 403 && hasToken === false)) {
    return wrong('access', {
      what: hasToken
        ? 'a gated model, which the account of the token may not read'
        : 'a gated model: its owner asks to accept terms',
      hint: hasToken
        ? `Accept the terms at ${page} with the token's account, and wait until its owner agrees if that is asked`
        : `Accept the terms at ${page}, make a token at ${connection.endpoint}/settings/tokens, and set HF_TOKEN to it`,
    })
  }
  if (code === 'RevisionNotFound') {
    return wrong('absent', {
      what: `no revision ${JSON.stringify(revision)}`,
      hint: `The branches and tags are at ${page}/tree/main`,
    })
  }
  if (code === 'EntryNotFound')
    return wrong('absent', {
      what: 'no such file in the repository',
      hint: `The files are at ${page}/tree/${revision}`,
    })
  if (status === 401 && hasToken && code !== 'RepoNotFound') {
    return wrong('access', {
      what: 'the token is not valid',
      ...(message && { got: message }),
      hint: 'Set HF_TOKEN to a token that is, or unset it',
    })
  }
  if (status === 404 || status === 401) return wrong('access', unknownId(asked, page))
  return wrong('access', {
    what: 'the Hub refuses',
    expected: '200',
    got: message === undefined ? String(status) : `${status}: ${message}`,
  })
}

function unknownId(
  { connection, source: { id }, knownIds = [] }: HubRequest,
  page: string,
): Omit<ErrorDetails, 'where'> {
  const near = nearMisses(id, knownIds)
  const meant = near.length > 0 ? `Did you mean ${near.join(' or ')}? ` : ''
  const access =
    connection.token === undefined ? 'a private one needs HF_TOKEN' : `see ${page} with the token's account`
  return { what: 'no such model on the Hub, or a private one', hint: `${meant}Check the id; ${access}` }
}
