// The environment variables and paths of Python's huggingface_hub, so that both share one login and one cache.

import { readFile } from 'node:fs/promises'
import { homedir } from 'node:os'
import path from 'node:path'
import { ConfigError } from '../../../../core/base/errors.js'
import { checkArgument, ENDPOINT, kind } from '../../../../core/base/options.js'
import { codeOf, fileError } from '../../node/errors.js'

const SECONDS = kind('a whole number of seconds', (value) => /^[1-9]\d{0,5}$/.test(String(value)))

type Variables = Readonly<Record<string, string | undefined>>

export function hubEnvironment(variables: Variables = process.env) {
  const get = (name: string) => variables[name] || undefined
  const isOn = (name: string) => /^(1|on|yes|true)$/i.test(get(name) ?? '')
  const endpoint = (get('HF_ENDPOINT') ?? 'https://huggingface.co').replace(/\/+$/, '')
  checkArgument(endpoint, ENDPOINT, 'HF_ENDPOINT')
  const seconds = get('HF_HUB_DOWNLOAD_TIMEOUT')
  if (seconds !== undefined) checkArgument(seconds, SECONDS, 'HF_HUB_DOWNLOAD_TIMEOUT')
  const cache = get('HF_HUB_CACHE') ?? get('HUGGINGFACE_HUB_CACHE')
  const places = ['HF_HUB_CACHE', 'HUGGINGFACE_HUB_CACHE', 'HF_HOME', 'XDG_CACHE_HOME']
  return {
    endpoint,
    cacheFolder: cache === undefined ? path.join(homeFolder(variables), 'hub') : expanded(cache, variables),
    /** The variable that sets the place of the cache; undefined if the cache is in its usual place. */
    cacheVariable: places.find(get),
    isOffline: isOn('HF_HUB_OFFLINE') || (get('HF_HUB_OFFLINE') === undefined && isOn('TRANSFORMERS_OFFLINE')),
    avoidsLinks: isOn('HF_HUB_DISABLE_SYMLINKS'),
    stallMs: seconds === undefined ? undefined : Number(seconds) * 1000,
  }
}

export async function hubToken(variables: Variables = process.env): Promise<string | undefined> {
  if (/^(1|on|yes|true)$/i.test(variables.HF_HUB_DISABLE_IMPLICIT_TOKEN ?? '')) return undefined
  const given = variables.HF_TOKEN || variables.HUGGING_FACE_HUB_TOKEN
  if (given) return checked(given, 'HF_TOKEN')
  const named = variables.HF_TOKEN_PATH
  const file = named ? expanded(named, variables) : path.join(homeFolder(variables), 'token')
  const text = await readFile(file, 'utf8').catch((error: unknown) => {
    // If the home is not a folder, there is no token. Writing to the cache will report the problem.
    if (['ENOENT', 'ENOTDIR'].includes(codeOf(error) ?? '')) return ''
    throw fileError(file, 'cannot be read', error)
  })
  return checked(text, file)
}

/** Checks a token. It becomes a header, so it must be visible ASCII. The message does not repeat it. */
function checked(text: string, where: string): string | undefined {
  const token = text.trim()
  if (/^[\x21-\x7e]*$/.test(token)) return token === '' ? undefined : token
  throw new ConfigError({ where, what: 'not a token', expected: 'hf_ and letters' })
}

function homeFolder(variables: Variables): string {
  const named = variables.HF_HOME || (variables.XDG_CACHE_HOME && path.join(variables.XDG_CACHE_HOME, 'huggingface'))
  return named ? expanded(named, variables) : path.join(homedir(), '.cache', 'huggingface')
}

function expanded(text: string, variables: Variables): string {
  const filled = text
    .replace(/^~(?=$|[/\\])/, () => homedir())
    .replace(/\$(?:\{(\w+)\}|(\w+))/g, (whole, braced, bare) => variables[braced ?? bare] ?? whole)
  return path.resolve(filled)
}
