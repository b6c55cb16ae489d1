// Decides what a string that names a model, an adapter or a base means. Pure: the caller says which paths exist.

import { splitName } from '../../core/base/bytes.js'
import { attempt, ConfigError } from '../../core/base/errors.js'
import { withoutPassword } from '../../core/base/options.js'

export interface HubSource {
  readonly kind: 'hub'
  readonly id: string
  readonly revision: string
  /** A folder or file inside the repository; empty for the whole. */
  readonly path: string
}

export type ParsedSource =
  | { readonly kind: 'path'; readonly path: string }
  | { readonly kind: 'url'; readonly url: string }
  | HubSource

export interface SourceRules {
  readonly where: string
  readonly exists?: (path: string) => boolean
  /** The address of a private Hub. Its URLs are read as ids too. */
  readonly endpoint?: string | undefined
  /** The scheme of the page that asks. Extensions and Electron have their own, and their files have such addresses. */
  readonly scheme?: string | undefined
}

export const DEFAULT_REVISION = 'main'

const HUB_ORIGINS = ['https://huggingface.co', 'https://hf.co']
/** The Hub's limit. Longer names could exceed the limits of file systems. */
const MAX_ID_LENGTH = 96
const NAME = /^[A-Za-z0-9_](?:[\w.-]*\w)?$/
/** Other kinds of repositories. Their names stand before the id in the Hub's addresses. */
const OTHER_KINDS = ['datasets', 'spaces', 'kernels', 'buckets']
/** Begins like a path: ./ ../ / ~/ C:\ and on Windows .\ and \\server. */
const PATH = /^(?:\.{1,2}(?:[/\\]|$)|[/\\]|~[/\\]|[A-Za-z]:[/\\])/

/**
 * Tells paths, Hub ids and URLs apart.
 *
 * A string that begins with `./`, `../../`, `/` or a drive letter, or that exists, is a path.
 * `hf:org/name@revision/folder` is always the Hub, as is an address of a model's page there. A bare `org/name` or
 * `org/name@revision` is the Hub, unless `org` is a local folder. Other addresses are folders of files.
 *
 * @throws ConfigError naming the argument, when the string is empty or malformed, or a path in a browser
 *
 * @example
 * parseSource('org/name', { where: 'model' })   // { kind: 'hub', id: 'org/name', revision: 'main', path: '' }
 */
export function parseSource(
  text: string,
  rules: SourceRules & { readonly exists?: undefined },
): Exclude<ParsedSource, { kind: 'path' }>
export function parseSource(text: string, rules: SourceRules): ParsedSource
export function parseSource(text: string, rules: SourceRules): ParsedSource {
  const { where, exists, endpoint, scheme } = rules
  if (typeof text !== 'string' || text.trim() === '') {
    const got = typeof text === 'string' ? JSON.stringify(text) : typeof text
    throw new ConfigError({ where, what: 'names nothing', expected: EXPECTED, got })
  }
  if (/^hf:/i.test(text)) return parseHub(text.replace(/^hf:(?:\/\/)?/i, ''), text, where)
  const isOfPage = scheme !== undefined && scheme !== 'file:' && text.startsWith(`${scheme}//`)
  if (isOfPage || /^https?:\/\//i.test(text)) return parseUrl(text, where, endpoint)
  refuseAddress(text, where, EXPECTED)
  // An address without its scheme would count as a path, and messages about a missing path repeat it.
  if (/^\/\/[^/\s]*:[^/\s]*@/.test(text)) throw withPassword(text, where)
  if (!PATH.test(text) && exists?.(text) !== true) {
    const [id, , revision] = /^([^@]+)(@(.+))?$/.exec(text)?.slice(1) ?? []
    const [owner, ...rest] = (id ?? '').split('/')
    const isBare = rest.length === 1 && isId(id) && (revision === undefined || isRevision(revision))
    if (isBare && exists?.(owner) !== true) return { kind: 'hub', id, revision: revision ?? DEFAULT_REVISION, path: '' }
  }
  if (exists !== undefined) return { kind: 'path', path: text }
  throw new ConfigError({
    where,
    what: 'a path, and browsers cannot open paths',
    expected: 'org/name, hf:org/name@revision/folder, a URL, or a folder of picked files',
    got: quoted(text),
  })
}

/** Programs that can copy from an address, by its scheme. */
const COPIES: Readonly<Record<string, string>> = {
  s3: 'aws s3 cp',
  gs: 'gcloud storage cp',
  az: 'az storage blob download-batch',
  http: 'curl -LO',
  https: 'curl -LO',
  hf: 'hf download',
}

/** @throws ConfigError for a text that begins with a scheme, such as `s3://` */
export function refuseAddress(text: string, where: string, expected: string): void {
  const [, scheme] = /^([a-z][a-z0-9+.-]+):\/\//i.exec(text) ?? []
  if (scheme === undefined) return
  const copy = COPIES[scheme.toLowerCase()]
  throw new ConfigError({
    where,
    what: `an address of a kind that is not used here, ${scheme}://`,
    expected,
    got: quoted(text),
    hint: `Copy the files ${copy === undefined ? '' : `with \`${copy}\` `}and name the path on this machine`,
  })
}

const EXPECTED = 'a path, org/name, hf:org/name@revision/folder, or a URL'

function parseHub(rest: string, text: string, where: string): HubSource {
  const wrong = (what: string, hint?: string) =>
    new ConfigError({ where, what, expected: 'hf:org/name@revision/folder', got: quoted(text), ...(hint && { hint }) })
  const [, owned, single] = /^(?:([^/@]+\/[^/@]+)|([^/@]+))(?=[/@]|$)/.exec(rest) ?? []
  const id = owned ?? single
  if (id === undefined || !isId(id)) throw wrong('not the id of a model on the Hub')
  if (OTHER_KINDS.includes(id.split('/')[0])) throw wrong('names no model', 'Only repositories of models are opened')
  let tail = rest.slice(id.length)
  let revision = DEFAULT_REVISION
  if (tail.startsWith('@')) {
    // Only these revisions contain a slash on the Hub; in others the slash is written %2F.
    const [, found] = /^@(refs\/(?:pr|convert)\/[^/]+|[^/]*)/.exec(tail)!
    revision = decoded(found) ?? ''
    tail = tail.slice(found.length + 1)
    if (!isRevision(revision)) throw wrong('not the name of a revision')
  }
  const path = tail.replace(/^\//, '').replace(/\/$/, '')
  const isInside = path === '' || attempt(() => splitName(path, '')).problems.length === 0
  if (!isInside) throw wrong('a folder that leads out of the repository')
  return { kind: 'hub', id, revision, path }
}

function withPassword(text: string, where: string): ConfigError {
  const what = 'a name or a password in a URL, which no server gets'
  return new ConfigError({ where, what, expected: EXPECTED, got: withoutPassword(text) })
}

function parseUrl(text: string, where: string, endpoint: string | undefined): ParsedSource {
  if (!URL.canParse(text)) throw new ConfigError({ where, what: 'not a URL', expected: EXPECTED, got: quoted(text) })
  const url = new URL(text)
  if (url.username !== '' || url.password !== '') throw withPassword(text, where)
  const isHub = endpoint === undefined ? false : url.href.startsWith(`${endpoint}/`)
  if (!isHub && !HUB_ORIGINS.includes(url.origin)) return { kind: 'url', url: text }
  const base = isHub ? new URL(endpoint!).pathname.replace(/\/$/, '') : ''
  const [owner, name, verb, ...tail] = url.pathname.slice(base.length + 1).split('/')
  if (verb === undefined || verb === '') return parseHub([owner, name].filter(Boolean).join('/'), text, where)
  if (!['tree', 'blob', 'resolve', 'raw'].includes(verb) || tail.length === 0) return { kind: 'url', url: text }
  return parseHub(`${owner}/${name}@${tail.map((part) => decoded(part) ?? part).join('/')}`, text, where)
}

/** True for a model's id, `org/name` or `name`. Strict, because it becomes part of paths and addresses. */
export function isId(text: string): boolean {
  const parts = text.split('/')
  return (
    text.length <= MAX_ID_LENGTH &&
    parts.length <= 2 &&
    parts.every((part) => NAME.test(part) && !/--|\.\./.test(part) && !/\.git$/.test(part))
  )
}

/** True if git's rules allow the name. Strict, because it becomes part of paths and addresses. */
export function isRevision(text: string): boolean {
  // biome-ignore lint/suspicious/noControlCharactersInRegex: git refuses them too
  const isClean = !/[\x00-\x20\x7f~^:?*[\\]|\.\.|@\{|\/\/|\.lock(?:\/|$)/.test(text)
  return isClean && text.length <= 255 && text.split('/').every((part) => part !== '' && !/^[.-]|\.$/.test(part))
}

/** Decodes percent escapes; returns undefined if one is malformed. */
export function decoded(text: string): string | undefined {
  try {
    return decodeURIComponent(text)
  } catch {
    return undefined
  }
}

function quoted(text: string): string {
  return JSON.stringify(withoutPassword(text))
}
