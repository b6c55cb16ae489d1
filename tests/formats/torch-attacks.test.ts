// Threats to a reader of pickles from strangers, one test each: code that would run, claims about memory, archives that
// lie.

import { describe, expect, test } from 'vitest'
import { MemorySource } from '../../src/base/bytes.js'
import { FormatError, LowrankError, UnsupportedError } from '../../src/base/errors.js'
import { parseTorchFile } from '../../src/formats/torch/torch-file.js'
import { THOROUGH } from '../thorough.js'
import {
  bytesOf,
  dict,
  type Entry,
  int,
  long,
  type Part,
  PROTO,
  storage,
  tensor,
  torchZip,
  tuple,
  u32,
  u64,
  unicode,
  zip,
} from './torch-builder.js'

const FOUR = new Uint8Array(16)
const parse = (bytes: Uint8Array) => parseTorchFile(new MemorySource(bytes, 'evil.bin'))
const parsePickle = (...parts: Part[]) => parse(torchZip(bytesOf(PROTO, ...parts), { '0': FOUR }))

async function failure(promise: Promise<unknown>): Promise<LowrankError> {
  const error = await promise.then(
    () => undefined,
    (reason) => reason,
  )
  expect(error).toBeInstanceOf(LowrankError)
  return error
}

const ordinary = tensor(storage('0', 4), 0, [2, 2], [2, 1])

test('the file that the attacks start from loads', async () => {
  const { tensors } = await parse(torchZip(dict({ w: ordinary }), { '0': FOUR }))
  expect([...tensors.keys()]).toEqual(['w'])
})

describe('code', () => {
  test.each<[string, Part[], RegExp]>([
    [
      'REDUCE of os.system',
      ['cposix\nsystem\n', tuple(unicode('id')), 'R.'],
      /byte 2: the pickle asks for posix\.system/,
    ],
    ['on Windows', ['cnt\nsystem\n', tuple(unicode('id')), 'R.'], /asks for nt\.system/],
    ['GLOBAL eval', ['cbuiltins\neval\n', tuple(unicode('1')), 'R.'], /asks for builtins\.eval/],
    ['GLOBAL getattr', ['cbuiltins\ngetattr\n.'], /asks for builtins\.getattr/],
    ['STACK_GLOBAL', [unicode('os'), unicode('system'), [0x93], '.'], /byte \d+: the pickle asks for os\.system/],
    [
      'STACK_GLOBAL out of the memo',
      [unicode('os'), 'q\x01', unicode('system'), 'q\x02h\x01h\x02', [0x93], '.'],
      /asks for os\.system/,
    ],
    ['POP', ['N0.'], /opcode POP \(0x30\) is refused/],
    ['a class inside torch', ['ctorch\nload\n.'], /asks for torch\.load/],
    [
      'a dotted name',
      [unicode('torch'), unicode('serialization.os.system'), [0x93], '.'],
      /torch\.serialization\.os\.system/,
    ],
    ['the module of an allowed name', ['ccollections\nOrderedDict.__init__\n.'], /collections\.OrderedDict\.__init__/],
    ['INST', ['(', unicode('id'), 'iposix\nsystem\n.'], /opcode INST \(0x69\) is refused/],
    ['OBJ', ['(ccollections\nOrderedDict\no.'], /opcode OBJ \(0x6f\) is refused/],
    ['NEWOBJ', ['ccollections\nOrderedDict\n)', [0x81], '.'], /opcode NEWOBJ \(0x81\) is refused/],
    ['NEWOBJ_EX', ['ccollections\nOrderedDict\n)}', [0x92], '.'], /opcode NEWOBJ_EX \(0x92\) is refused/],
    ['EXT1, a registered class', [[0x82, 1], '.'], /opcode EXT1 \(0x82\) is refused/],
    ['PERSID, a persistent id in text', ['Pstorage\n.'], /opcode PERSID \(0x50\) is refused/],
    ['a buffer from outside', [[0x97], '.'], /opcode NEXT_BUFFER \(0x97\) is refused/],
    [
      'BUILD with __setstate__',
      ['ccollections\nOrderedDict\n)R}(', unicode('__setstate__'), int(1), 'ub.'],
      /opcode BUILD \(0x62\) is refused/,
    ],
    ['BUILD of a tensor', [ordinary, '}b.'], /opcode BUILD/],
    ['BUILD of a class', ['ctorch\nFloatStorage\n}b.'], /opcode BUILD/],
    ['hooks', [hooked('}(', unicode('hook'), int(1), 'u')], /a tensor with hooks/],
  ])('%s', async (_, parts, message) => {
    const error = await failure(parsePickle(...parts))
    expect(error).toBeInstanceOf(UnsupportedError)
    expect(error.message).toMatch(/^evil\.bin: archive\/data\.pkl: byte \d+: /)
    expect(error.message).toMatch(message)
  })

  function hooked(...hooks: Part[]): Uint8Array {
    const args = tuple(storage('0', 4), int(0), tuple(int(4)), tuple(int(1)), [0x89], bytesOf(...hooks))
    return bytesOf('ctorch._utils\n_rebuild_tensor_v2\n', args, 'R.')
  }

  test.each<[string, Part[], RegExp]>([
    [
      'a storage class called',
      ['ctorch\nFloatStorage\n', tuple(int(9)), 'R.'],
      /REDUCE of torch\.FloatStorage, which is never called/,
    ],
    ['a tensor called', [ordinary, ')R.'], /REDUCE of something that is no function/],
    ['arguments that are no tuple', ['ccollections\nOrderedDict\n]R.'], /REDUCE without a tuple/],
    ['an OrderedDict of something', ['ccollections\nOrderedDict\n', tuple(']'), 'R.'], /an OrderedDict with arguments/],
    [
      'a persistent id of a module',
      [tuple(unicode('module'), 'ctorch\nFloatStorage\n', unicode('/etc/passwd'), unicode('x')), 'Q.'],
      /persistent id that is not a storage/,
    ],
    ['a persistent id that is a string', [unicode('storage'), 'Q.'], /persistent id that is not a storage/],
    [
      'a persistent id with a function',
      [tuple(unicode('storage'), 'ccollections\nOrderedDict\n', unicode('0'), unicode('cpu'), int(4)), 'Q.'],
      /persistent id that is not a storage/,
    ],
    ['one storage of two types', [tuple(storage('0', 4), storage('0', 4, 'IntStorage')), '.'], /two types or sizes/],
    ['one storage of two sizes', [tuple(storage('0', 4), storage('0', 2)), '.'], /two types or sizes/],
    ['STACK_GLOBAL of numbers', [int(1), int(2), [0x93], '.'], /STACK_GLOBAL without two strings/],
    ['an opcode that does not exist', [[0xff], '.'], /no opcode 0xff/],
    ['PROTO in the middle', ['N', [0x80, 2], '.'], /PROTO after the beginning/],
    ['an empty stack', ['.'], /nothing to take/],
    ['STOP above a mark', ['(.'], /nothing to take/],
    ['two results', ['NN.'], /more than one value/],
    ['a mark that is missing', ['Nt.'], /no mark/],
    ['the memo before it is filled', ['h\x05.'], /nothing is remembered as 5/],
    ['a mark to remember', ['(q\x00.'], /nothing to remember/],
    ['an odd number of items', ['}(Nu.'], /a key without a value/],
    ['a key that is a list', ['}]Ns.'], /a dict key/],
    ['a key twice', ['}(', unicode('w'), 'N', unicode('w'), 'Nu.'], /the key "w" occurs twice/],
    ['items for a tuple', [')(NNu.'], /no dict/],
    ['items for a dict', ['}(Ne.'], /no list/],
    ['text that is not UTF-8', ['X', u32(1), [0xff], '.'], /not UTF-8/],
    ['an integer of 255 bytes', [[0x8a, 255], new Uint8Array(255), '.'], /an integer of 255 bytes/],
    ['a name without an end', ['c', 'x'.repeat(1000)], /a name of more than 256 bytes/],
    ['no STOP', ['N'], /goes on after the end/],
    ['something after STOP', ['}.}'], /goes on after its pickle/],
  ])('%s', async (_, parts, message) => {
    const error = await failure(parsePickle(...parts))
    expect(error).toBeInstanceOf(FormatError)
    expect(error.message).toMatch(message)
  })
})

describe('memory and time', () => {
  const one = (value: Uint8Array) => parse(torchZip(dict({ w: value }), { '0': FOUR }))

  test.each<[string, Uint8Array, RegExp]>([
    ['a tensor past its storage', tensor(storage('0', 4), 1, [2, 2], [2, 1]), /does not lie inside its storage/],
    ['a stride past it', tensor(storage('0', 4), 0, [2, 2], [3, 1]), /does not lie inside/],
    ['a negative offset', tensor(storage('0', 4), -1, [1], [1]), /does not lie inside/],
    ['a negative size', tensor(storage('0', 4), 0, [-1], [1]), /without a tuple of at most 64 sizes/],
    ['a negative stride', tensor(storage('0', 4), 3, [4], [-1]), /without a tuple of at most 64 sizes/],
    ['more sizes than strides', tensor(storage('0', 4), 0, [2, 2], [1]), /does not lie inside/],
    ['65 dimensions', tensor(storage('0', 4), 0, Array(65).fill(1), Array(65).fill(1)), /at most 64 sizes/],
    ['sizes whose product overflows', tensor(storage('0', 4), 0, [2 ** 40, 2 ** 40], [0, 0]), /does not lie inside/],
    [
      'a stride of 0 that makes terabytes',
      tensor(storage('0', 4), 0, [2 ** 20, 2 ** 20], [0, 0]),
      /much larger than the file/,
    ],
    [
      'a storage longer than its entry',
      tensor(storage('0', 2 ** 40), 0, [4], [1]),
      /not as long as the pickle says; expected 4398046511104 bytes, got 16/,
    ],
    [
      'a storage that is not there',
      tensor(storage('1', 4), 0, [4], [1]),
      /archive\/data\/1: a storage that is not in the archive/,
    ],
    [
      'a storage outside the folder',
      tensor(storage('../../../etc/passwd', 4), 0, [4], [1]),
      /a storage that is not in the archive/,
    ],
    ['a storage of __proto__', tensor(storage('__proto__', 4), 0, [4], [1]), /a storage that is not in the archive/],
  ])('%s', async (_, value, message) => {
    const error = await failure(one(value))
    expect(error).toBeInstanceOf(FormatError)
    expect(error.message).toMatch(message)
  })

  test('many views of one storage: what they cost in all is bounded', async () => {
    const values = new Uint8Array(4 << 20)
    const spread = tensor('h\x00', 0, [2, 2 ** 10], [2 ** 20 - 2 ** 10, 1])
    const whole = tensor('h\x00', 0, [2 ** 20], [1])
    for (const view of [spread, whole]) {
      const pickle = dict({
        first: tensor(bytesOf(storage('0', 2 ** 20), 'q\x00'), 0, [1], [1]),
        ...Object.fromEntries(Array.from({ length: 1000 }, (_, i) => [`w${i}`, view])),
      })
      expect((await failure(parse(torchZip(pickle, { '0': values })))).message).toMatch(
        /w\d+: views that are much larger than the file/,
      )
    }
  })

  test('a stack without end, and a list that contains itself', async () => {
    expect((await failure(parsePickle('('.repeat(100_000)))).message).toMatch(/more than 65536 items on the stack/)
    // A list that contains itself twice, and so on: 2¹⁰⁰⁰ items for whoever walks it.
    const bomb = Array.from(
      { length: 200 },
      (_, i) => `](h${String.fromCharCode(i)}h${String.fromCharCode(i)}eq${String.fromCharCode(i + 1)}`,
    )
    const bombed = bytesOf(']q\x00', ...bomb.map((step) => bytesOf(Uint8Array.from(step, (c) => c.charCodeAt(0)))), '.')
    await failure(parsePickle(bombed))
  })

  // Each takes seconds.
  if (THOROUGH) {
    test('a memo, objects and a nesting without end', async () => {
      expect((await failure(parsePickle('N', new Uint8Array(2 ** 21 + 2).fill(0x94)))).message).toMatch(
        /more than 2097152 remembered/,
      )
      const tuples = bytesOf(...Array.from({ length: 40 }, () => bytesOf('(', ')'.repeat(60_000), 'e')))
      expect((await failure(parsePickle(']', tuples, '.'))).message).toMatch(/more than 2097152 objects/)
      const nested = await failure(parsePickle('N', new Uint8Array(2 ** 20).fill(0x85), '.'))
      expect(nested.message).toMatch(/no dict of tensors was saved; got tuple/)
    })
  }

  test('a huge tuple that every tensor takes for its sizes is not walked each time', async () => {
    const sizes = bytesOf('(', ...Array.from({ length: 60_000 }, () => 'K\x01'), 'tq\x00')
    const args = tuple(storage('0', 4), int(0), 'h\x00', 'h\x00', [0x89], 'N')
    await failure(parsePickle(sizes, 'ctorch._utils\n_rebuild_tensor_v2\n', args, 'R.'))
  })

  test('names from JavaScript’s prototypes are names like any other', async () => {
    const pickle = dict({ __proto__x: ordinary, constructor: ordinary, toString: ordinary })
    const { tensors } = await parse(torchZip(pickle, { '0': FOUR }))
    expect([...tensors.keys()]).toEqual(['__proto__x', 'constructor', 'toString'])
    const proto = await parsePickle('}(', unicode('__proto__'), ordinary, 'u.')
    expect([...proto.tensors.keys()]).toEqual(['__proto__'])
    expect(({} as Record<string, unknown>).storage).toBeUndefined()
  })
})

describe('archives', () => {
  const pickle: Entry = { name: 'a/data.pkl', data: dict({ w: ordinary }) }
  const data: Entry = { name: 'a/data/0', data: FOUR }

  test.each<[string, Uint8Array, RegExp]>([
    ['none', bytesOf('PK\x03\x04'), /no end record/],
    ['an empty file', bytesOf(), /not a file by torch\.save/],
    ['text', bytesOf('{"a": 1}'), /not a file by torch\.save/],
    [
      'a pointer of Git LFS',
      bytesOf('version https://git-lfs.github.com/spec/v1\noid sha256:0\n'),
      /It only points to one: fetch it with Git LFS/,
    ],
    ['another pickle', bytesOf(PROTO, '}.}.}.}.}.'), /a pickle and no zip archive/],
    ['without a pickle', zip([data]), /a zip archive, but not by torch\.save/],
    ['with two', zip([pickle, { ...pickle, name: 'b/data.pkl' }, data]), /not by torch\.save/],
    ['one name twice', zip([pickle, data, data]), /a\/data\/0: occurs twice/],
    ['a compressed entry', zip([pickle, { ...data, method: 8 }]), /a\/data\/0: a compressed entry/],
    ['an encrypted entry', zip([pickle, { ...data, flags: 1 }]), /a\/data\/0: an encrypted entry/],
    ['a wrong checksum', zip([pickle, { ...data, crc: 1 }]), /a\/data\/0: its checksum is wrong/],
    ['two entries in one place', zip([pickle, { ...data, headerOffset: 0 }]), /a\/data\/0: has no header of this name/],
    [
      'an entry in the directory',
      zip([pickle, { ...data, headerOffset: 10_000 }]),
      /a\/data\/0: begins outside the archive/,
    ],
    ['an entry of another length', zip([pickle, { ...data, byteLength: 8 }]), /not as long as the pickle says/],
    [
      'big-endian',
      zip([pickle, data, { name: 'a/byteorder', data: bytesOf('big') }]),
      /not in little-endian order; expected little, got big/,
    ],
    [
      'an order that does not exist',
      zip([pickle, data, { name: 'a/byteorder', data: bytesOf('middle') }]),
      /got middle/,
    ],
    [
      'sizes beyond 2⁵³',
      bytesOf(
        zip([pickle, data], { zip64: true }).subarray(0, -62),
        u64(2 ** 60),
        zip([pickle, data], { zip64: true }).subarray(-54),
      ),
      /directory/,
    ],
  ])('%s', async (_, bytes, message) => {
    const error = await failure(parse(bytes))
    expect(error.message).toMatch(/^evil\.bin/)
    expect(error.message).toMatch(message)
  })

  test('overlapping entries', async () => {
    // The second header lies inside the first storage’s bytes.
    const inner = zip([{ name: 'a/data/1', data: FOUR }]).subarray(0, 30 + 8 + 5 + 16)
    const both = dict({ v: tensor(storage('0', 32), 0, [4], [1]), w: tensor(storage('1', 4), 0, [4], [1]) })
    const first: Entry = { name: 'a/data/0', data: bytesOf(inner, new Uint8Array(128 - inner.length)) }
    const start = 30 + 'a/data.pkl'.length + 5 + both.length
    const hidden: Entry = { name: 'a/data/1', data: FOUR, headerOffset: start + 30 + 8 + 5 }
    const error = await failure(parse(zip([{ name: 'a/data.pkl', data: both }, first, hidden])))
    expect(error.message).toMatch(/a\/data\/0: overlaps what comes after it/)
  })

  test('zip64 end records and fields are read', async () => {
    const { tensors } = await parse(zip([pickle, { ...data, zip64: true }], { zip64: true }))
    expect([...tensors.keys()]).toEqual(['w'])
  })

  test('long integers are sizes', async () => {
    const { tensors } = await parse(torchZip(dict({ w: tensor(storage('0', 4), 0, [4], [1]) }), { '0': FOUR }))
    expect(tensors.get('w')!.shape).toEqual([4])
    const wide = bytesOf(
      tuple(unicode('storage'), 'ctorch\nFloatStorage\n', unicode('0'), unicode('cpu'), long(4)),
      'Q',
    )
    expect((await parse(torchZip(dict({ w: tensor(wide, 0, [4], [1]) }), { '0': FOUR }))).tensors.size).toBe(1)
  })
})
