// Names from files reach the terminal as text: control characters are escaped in tables, messages and documents.

import { writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { beforeAll, describe, expect, it } from 'vitest'
import { printable, printableJson, printableLines, printableProse } from '../../../src/app/cli/show/terminal.js'
import { encodeFloats } from '../../../src/core/base/dtype.js'
import { NodeDirectory } from '../../../src/files/io/node/files.js'
import { saveSafetensors } from '../../../src/files/safetensors.js'
import { lowrankHere } from './in-process.js'
import { scratchFolder } from './lowrank.js'

/** A name that clears the screen, forges a line, sets a title with a C1 control, and reverses the writing direction. */
const HOSTILE = 'q\x1b[2J\nerror: forged\r\x9d0;title\x07\u202e\u2066\x7f'
const ESCAPED = 'q\\x1b[2J\\nerror: forged\\r\\x9d0;title\\x07\\u202e\\u2066\\x7f'
// biome-ignore lint/suspicious/noControlCharactersInRegex: what must not be there
const CONTROL = /[\x00-\x09\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]/

describe('escaping', () => {
  it('writes out what terminals act on, and nothing else', () => {
    expect(printable(HOSTILE)).toBe(ESCAPED)
    expect(printable('layers.0.ключ 鍵 🔑 ‖ΔW‖')).toBe('layers.0.ключ 鍵 🔑 ‖ΔW‖')
  })

  it('keeps ends of lines and colors of ours in lines', () => {
    expect(printableLines('\x1b[31merror:\x1b[39m a\nb\x1b[8;1H\x1b[38;5;1mc')).toBe(
      '\x1b[31merror:\x1b[39m a\nb\\x1b[8;1H\\x1b[38;5;1mc',
    )
  })

  it('keeps the lines and the direction of prose', () => {
    expect(printableProse('a\n\tb \u200fאב\x1b[2J\x9b')).toBe('a\n\tb \u200fאב\\x1b[2J\\x9b')
  })

  it('leaves the meaning of JSON', () => {
    const json = printableJson(JSON.stringify({ [HOSTILE]: HOSTILE }, null, 2))
    expect(json).not.toMatch(CONTROL)
    expect(JSON.parse(json)).toEqual({ [HOSTILE]: HOSTILE })
  })
})

describe('a file with hostile names', () => {
  const scratch = scratchFolder()
  const checkpoint = join(scratch, 'model.safetensors')
  const adapter = join(scratch, 'adapter')
  const data = encodeFloats(Float32Array.from([1, 2, 3, 4]), 'fp32')
  const tensor = (name: string, shape: number[]) => {
    return { name, dtype: 'fp32' as const, shape, data: data.subarray(0, 4 * shape[0] * shape[1]) }
  }

  beforeAll(async () => {
    const base = [tensor(`${HOSTILE}.weight`, [2, 2])]
    await saveSafetensors(new NodeDirectory(scratch), 'model.safetensors', base)
    await saveSafetensors(new NodeDirectory(adapter), 'adapter_model.safetensors', [
      tensor(`base_model.model.${HOSTILE}.lora_A.weight`, [1, 2]),
      tensor(`base_model.model.${HOSTILE}.lora_B.weight`, [2, 1]),
      tensor(`base_model.model.${HOSTILE}x.lora_A.weight`, [1, 2]),
    ])
    const config = {
      peft_type: 'LORA',
      base_model_name_or_path: HOSTILE,
      r: 1,
      lora_alpha: 1,
      target_modules: [HOSTILE, `${HOSTILE}x`],
    }
    writeFileSync(join(adapter, 'adapter_config.json'), JSON.stringify(config))
  })

  it('cannot act on the terminal by the tables of inspect', async () => {
    const { code, stdout, stderr } = await lowrankHere('inspect', checkpoint)
    expect([code, stderr]).toEqual([0, ''])
    expect(stdout).toContain(`${ESCAPED}.weight  fp32`)
    expect(stdout).not.toMatch(CONTROL)
    expect(stdout.trimEnd().split('\n')).toHaveLength(3)
  })

  it('cannot by settings and problems of an adapter, and keeps its name in the document', async () => {
    const { code, stdout, stderr } = await lowrankHere('inspect', adapter, '--base', checkpoint)
    expect(code).toBe(1)
    expect(stdout).toContain(`base model   ${ESCAPED}\n`)
    expect(stderr).toContain(`${ESCAPED}x.lora_A.weight: half a pair`)
    expect(stdout + stderr).not.toMatch(CONTROL)
    expect(stdout + stderr).not.toMatch(/^error: forged/m)
    const document = await lowrankHere('inspect', adapter, '--json')
    expect(document.stdout).not.toMatch(CONTROL)
    expect(JSON.parse(document.stdout).config.baseModel).toBe(HOSTILE)
  })

  it('cannot by the message of an error', async () => {
    const out = join(scratch, 'out.safetensors')
    const { code, stderr } = await lowrankHere('merge', '--base', checkpoint, '--adapter', adapter, '--out', out)
    expect(code).toBe(1)
    expect(stderr).toMatch(/^error: .*half a pair/)
    expect(stderr).not.toMatch(CONTROL)
    expect(stderr.trimEnd().split('\n')).toHaveLength(1)
  })
})
