// A test for each attack by a malicious file, and a fuzzer. The list follows the attacks folder of
// huggingface/safetensors.

import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { FileError, FormatError, LowrankError } from '../../src/api/node.js'
import { concatBytes, MemorySource } from '../../src/core/base/bytes.js'
import { parseSafetensorsHeader, planSafetensors, readTensorF32 } from '../../src/files/safetensors.js'
import { runs } from '../thorough.js'

const encode = (text: string) => new TextEncoder().encode(text)

function lengthOf(value: bigint): Uint8Array {
  const bytes = new Uint8Array(8)
  new DataView(bytes.buffer).setBigUint64(0, value, true)
  return bytes
}

function file(header: string | Uint8Array, dataBytes = 0): Uint8Array {
  const bytes = typeof header === 'string' ? encode(header) : header
  return concatBytes([lengthOf(BigInt(bytes.byteLength)), bytes, new Uint8Array(dataBytes)])
}

const parse = (bytes: Uint8Array) => parseSafetensorsHeader(new MemorySource(bytes, 'evil.safetensors'))

const tensor = (name: string, dtype: string, shape: string, begin: string | number, end: string | number) =>
  `${JSON.stringify(name)}:{"dtype":"${dtype}","shape":${shape},"data_offsets":[${begin},${end}]}`

const valid = file(`{${tensor('a', 'F32', '[2]', 0, 8)},${tensor('b', 'U8', '[1]', 8, 9)}}`, 9)

test('the file that the attacks start from is valid', async () => {
  expect((await parse(valid)).tensors.size).toBe(2)
})

const attacks: [threat: string, bytes: Uint8Array, message: RegExp][] = [
  ['an empty file', new Uint8Array(), /too short/],
  ['a file of seven bytes', new Uint8Array(7), /too short; expected at least 8 bytes, got 7/],
  [
    'a header of 2⁶⁴ − 1 bytes',
    concatBytes([lengthOf(2n ** 64n - 1n), encode('{}')]),
    /header too large.*got 18446744073709551615/,
  ],
  [
    'a header just over the limit',
    concatBytes([lengthOf(100_000_001n), encode('{}')]),
    /expected at most 100000000 bytes/,
  ],
  ['a header longer than the file', concatBytes([lengthOf(10n), encode('{}')]), /goes past the end of the file/],
  ['an empty header', file(''), /does not begin with \{/],
  ['a header that begins with a space', file(' {}'), /does not begin with \{/],
  ['a header that is an array', file('[]'), /does not begin with \{/],
  ['a header that is no JSON', file('{"a":}'), /not valid JSON/],
  ['JSON followed by something else', file('{}{}'), /not valid JSON/],
  ['a header that is not UTF-8', file(Uint8Array.of(0x7b, 0x22, 0xff, 0x22, 0x7d)), /not valid UTF-8/],
  [
    'a name with half a surrogate pair',
    file(`{${tensor('x', 'U8', '[0]', 0, 0).replace('x', '\\ud800')}}`),
    /surrogate/,
  ],
  ['nesting that exhausts the stack', file(`{"a":${'['.repeat(50_000)}${']'.repeat(50_000)}}`), /deeper than 64/],
  [
    'two tensors of one name',
    file(`{${tensor('a', 'U8', '[1]', 0, 1)},${tensor('a', 'U8', '[1]', 1, 2)}}`, 2),
    /"a" occurs twice/,
  ],
  [
    'two dtypes of one tensor',
    file('{"a":{"dtype":"U8","dtype":"I8","shape":[0],"data_offsets":[0,0]}}'),
    /"dtype" occurs twice/,
  ],
  ['two lots of metadata', file('{"__metadata__":{},"__metadata__":{}}'), /"__metadata__" occurs twice/],
  ['metadata that is no object', file('{"__metadata__":[]}'), /__metadata__ is not a JSON object/],
  ['metadata with a number', file('{"__metadata__":{"a":1}}'), /value of "a" is not a string/],
  ['a tensor that is no object', file('{"a":3}'), /a: its header entry is not a JSON object/],
  [
    'an unknown key of a tensor',
    file('{"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0],"x":0}}'),
    /a: unknown header key "x"/,
  ],
  ['a tensor without a dtype', file('{"a":{"shape":[0],"data_offsets":[0,0]}}'), /a: unknown dtype.*got nothing/],
  ['an unknown dtype', file(`{${tensor('a', 'F31', '[0]', 0, 0)}}`), /a: unknown dtype.*got "F31"/],
  ['a dtype named after Object.prototype', file(`{${tensor('a', 'constructor', '[0]', 0, 0)}}`), /a: unknown dtype/],
  ['a tensor without a shape', file('{"a":{"dtype":"U8","data_offsets":[0,0]}}'), /a: wrong shape.*got nothing/],
  ['a shape that is a number', file(`{${tensor('a', 'U8', '1', 0, 1)}}`, 1), /a: wrong shape/],
  ['a negative dimension', file(`{${tensor('a', 'U8', '[-1]', 0, 1)}}`, 1), /a number in a wrong spelling.*got -1/],
  ['a fractional dimension', file(`{${tensor('a', 'U8', '[1.5]', 0, 1)}}`, 1), /a number in a wrong spelling.*got 1.5/],
  [
    'a dimension spelled as a float',
    file(`{${tensor('a', 'U8', '[1.0]', 0, 1)}}`, 1),
    /a number in a wrong spelling.*got 1.0/,
  ],
  [
    'a dimension spelled with an exponent',
    file(`{${tensor('a', 'U8', '[1e0]', 0, 1)}}`, 1),
    /a number in a wrong spelling.*got 1e0/,
  ],
  ['a dimension above 2⁵³', file(`{${tensor('a', 'U8', '[9007199254740993]', 0, 1)}}`, 1), /a: wrong shape/],
  [
    'a shape whose product overflows',
    file(`{${tensor('a', 'F32', '[4294967296,4294967296]', 0, 0)}}`),
    /a: data_offsets do not fit/,
  ],
  ['half a byte', file(`{${tensor('a', 'F4', '[3]', 0, 1)}}`, 1), /a: data_offsets do not fit F4 \(3\)/],
  ['one offset', file('{"a":{"dtype":"U8","shape":[1],"data_offsets":[0]}}', 1), /a: wrong data_offsets/],
  ['three offsets', file('{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1,2]}}', 2), /a: wrong data_offsets/],
  ['offsets in reverse', file(`{${tensor('a', 'U8', '[1]', 1, 0)}}`, 1), /a: wrong data_offsets.*got \[1,0\]/],
  ['offsets too small for the shape', file(`{${tensor('a', 'F32', '[2]', 0, 4)}}`, 4), /a: .*expected 8 bytes, got 4/],
  [
    'offsets too large for the shape',
    file(`{${tensor('a', 'F32', '[2]', 0, 12)}}`, 12),
    /a: .*expected 8 bytes, got 12/,
  ],
  [
    'a tensor past the end of the file',
    file(`{${tensor('a', 'F32', '[2]', 0, 8)}}`, 7),
    /a: its bytes go past the end/,
  ],
  [
    'a tensor far past the end',
    file(`{${tensor('a', 'U8', '[1000000000000]', 0, 1_000_000_000_000)}}`),
    /a: its bytes go past/,
  ],
  [
    'a hole at the start',
    file(`{${tensor('a', 'U8', '[1]', 1, 2)}}`, 2),
    /a: a hole before its bytes; expected begin 0, got 1/,
  ],
  [
    'a hole between tensors',
    file(`{${tensor('a', 'U8', '[1]', 0, 1)},${tensor('b', 'U8', '[1]', 2, 3)}}`, 3),
    /b: a hole/,
  ],
  [
    'tensors that overlap',
    file(`{${tensor('a', 'U8', '[2]', 0, 2)},${tensor('b', 'U8', '[2]', 1, 3)}}`, 3),
    /b: overlaps/,
  ],
  [
    'two tensors over the same bytes',
    file(`{${tensor('a', 'U8', '[2]', 0, 2)},${tensor('b', 'U8', '[2]', 0, 2)}}`, 2),
    /overlaps/,
  ],
  [
    'an empty tensor inside another',
    file(`{${tensor('a', 'U8', '[2]', 0, 2)},${tensor('b', 'U8', '[0]', 1, 1)}}`, 2),
    /b: overlaps/,
  ],
  ['code after the last tensor', concatBytes([valid, encode('evil()')]), /bytes after the last tensor/],
  ['a file cut short', valid.subarray(0, -1), /b: its bytes go past the end of the file.*download it again/],
]

describe('refused by name', () => {
  test.each(attacks)('%s', async (_, bytes, message) => {
    const error = await parse(bytes).then(
      () => undefined,
      (reason) => reason,
    )
    expect(error).toBeInstanceOf(FormatError)
    expect(error.message).toMatch(/^evil\.safetensors: /)
    expect(error.message).toMatch(message)
  })
})

test('names from Object.prototype are names, and pollute nothing', async () => {
  const names = ['__proto__', 'constructor', 'toString', '']
  const { tensors } = await parse(file(`{${names.map((name) => tensor(name, 'U8', '[0]', 0, 0)).join()}}`))
  expect([...tensors.keys()]).toEqual(names)
  const { metadata } = await parse(file('{"__metadata__":{"__proto__":"x"}}'))
  expect(Object.getPrototypeOf(metadata)).toBe(Object.prototype)
  expect(({} as Record<string, unknown>).dtype).toBeUndefined()
})

test('a claimed header of 100 MB allocates nothing when the file is small', async () => {
  const reads: number[] = []
  const source = {
    name: 'evil',
    byteLength: 100,
    read: async (_: number, byteLength: number) => {
      reads.push(byteLength)
      return lengthOf(99_999_999n)
    },
    close: async () => {},
  }
  await expect(parseSafetensorsHeader(source)).rejects.toThrow(FormatError)
  expect(reads).toEqual([8])
})

test('a source that shrinks after its header was read', async () => {
  const whole = new MemorySource(valid, 'x')
  const parsed = await parseSafetensorsHeader(whole)
  const shrunk = { ...parsed, source: new MemorySource(valid.subarray(0, -5), 'x') }
  await expect(readTensorF32(shrunk, 'a')).rejects.toThrow(FileError)
})

test('fuzz: of mutated files only our errors come, or a header that covers the file', async () => {
  const plan = planSafetensors(
    [
      { name: 'base_model.model.q.lora_A.weight', dtype: 'fp32', shape: [2, 3] },
      { name: 'base_model.model.q.lora_B.weight', dtype: 'bf16', shape: [4, 2] },
      { name: 'é', dtype: 'I64', shape: [] },
    ],
    { format: 'pt' },
  )
  const last = plan.tensors.at(-1)!
  const seed = new Uint8Array(last.offset + last.byteLength)
  seed.set(plan.header)
  const tokens = ['"', '{', '}', '[', ']', ',', ':', '0', '9', '-', '.', 'e', '\\u', 'F16', '__metadata__', '\u0000']
  const mutation = fc.oneof(
    fc.record({ kind: fc.constant('byte' as const), at: fc.nat(), value: fc.nat(255) }),
    fc.record({ kind: fc.constant('insert' as const), at: fc.nat(), value: fc.nat(tokens.length - 1) }),
    fc.record({ kind: fc.constant('cut' as const), at: fc.nat(), value: fc.nat(20) }),
    fc.record({ kind: fc.constant('repeat' as const), at: fc.nat(), value: fc.nat(20) }),
  )
  const apply = (bytes: Uint8Array, { kind, at, value }: { kind: string; at: number; value: number }) => {
    // Most hits belong into the header, where the decisions are.
    const start = at % Math.max(1, Math.min(bytes.byteLength, at % 4 === 0 ? bytes.byteLength : plan.header.byteLength))
    if (kind === 'byte') return bytes.map((byte, i) => (i === start ? value : byte))
    if (kind === 'insert') return concatBytes([bytes.subarray(0, start), encode(tokens[value]), bytes.subarray(start)])
    const end = Math.min(bytes.byteLength, start + value)
    if (kind === 'cut') return concatBytes([bytes.subarray(0, start), bytes.subarray(end)])
    return concatBytes([bytes.subarray(0, end), bytes.subarray(start)])
  }
  let accepted = 0
  await fc.assert(
    fc.asyncProperty(fc.array(mutation, { minLength: 1, maxLength: 4 }), async (mutations) => {
      const bytes = mutations.reduce(apply, seed)
      try {
        const { tensors } = await parse(bytes)
        accepted++
        const covered = [...tensors.values()].reduce((sum, { byteLength }) => sum + byteLength, 0)
        const header = Number(new DataView(bytes.slice().buffer).getBigUint64(0, true))
        expect(covered + header + 8).toBe(bytes.byteLength)
      } catch (error) {
        if (!(error instanceof LowrankError)) throw error
      }
    }),
    { numRuns: runs(3000) },
  )
  expect(accepted).toBeGreaterThan(0)
})
