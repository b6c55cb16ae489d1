// Public functions called from plain JavaScript: wrong arguments of any kind only give lowrank's errors, and the error
// of a misspelled option names the right one.

import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import * as lowrank from '../../src/api/node.js'
import { some } from '../thorough.js'
import { type Call, close, FUNCTIONS, METHODS, open, wrongValues } from './calls.js'

beforeAll(open)
afterAll(close)

async function errorOf({ call }: Call, args: unknown[]): Promise<unknown> {
  try {
    await call(...(args as never[]))
    return undefined
  } catch (error) {
    return error
  }
}

function shown(value: unknown): string {
  if (typeof value === 'object' && value !== null) return `${value.constructor?.name} ${JSON.stringify(value)}`
  return String(value)
}

describe('the table', () => {
  it('has every function and class of the entries', () => {
    const isErrorClass = (value: unknown) =>
      value === lowrank.LowrankError || Object.getPrototypeOf(value) === lowrank.LowrankError
    const callable = Object.entries(lowrank).filter(([, value]) => typeof value === 'function' && !isErrorClass(value))
    expect(Object.keys(FUNCTIONS).sort()).toEqual(callable.map(([name]) => name).sort())
  })
})

describe.each(Object.entries({ ...FUNCTIONS, ...METHODS }))('%s', (_, call) => {
  const { args, options, misspelled = {} } = call

  it('fails with errors of ours alone, whatever its arguments are', { timeout: 60_000 }, async () => {
    const raw: string[] = []
    const attempt = async (given: unknown[], what: string) => {
      const error = await errorOf(call, given)
      if (error === undefined || error instanceof lowrank.LowrankError) return
      raw.push(`${what}: ${error instanceof Error ? error.stack?.split('\n').slice(0, 3).join(' ') : String(error)}`)
    }
    await attempt([], 'nothing')
    for (let i = 0; i < args().length; i++) {
      for (const wrong of wrongValues()) {
        const given = args()
        given[i] = wrong
        await attempt(given, `argument ${i}: ${shown(wrong)}`)
      }
    }
    for (const key of options === undefined ? [] : some(Object.keys(args()[options] as object))) {
      for (const wrong of wrongValues()) {
        const given = args()
        given[options!] = { ...(given[options!] as object), [key]: wrong }
        await attempt(given, `${key}: ${shown(wrong)}`)
      }
    }
    expect(raw.slice(0, 5)).toEqual([])
  })

  it.each(Object.entries(misspelled))('says what %s was meant for', async (name, meant) => {
    const given = args()
    given[options!] = { ...(given[options!] as object), [name]: 1 }
    const error = (await errorOf(call, given)) as lowrank.LowrankError
    expect(error).toBeInstanceOf(lowrank.ConfigError)
    expect(error.where).toBe(name)
    expect(error.hint).toMatch(meant)
  })
})
