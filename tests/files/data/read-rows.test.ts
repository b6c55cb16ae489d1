import { readFileSync } from 'node:fs'
import { gzipSync } from 'node:zlib'
import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { type ByteSource, ConfigError, DataError, LowrankError, MemoryDirectory } from '../../../src/api/node.js'
import { MemorySource } from '../../../src/core/base/bytes.js'
import { detectFormat, type ReadOptions } from '../../../src/files/data/read-files.js'
import { readRows } from '../../../src/files/data/read-rows.js'
import { type DataSource, planSplit, type Row } from '../../../src/files/data/row.js'
import { openFile } from '../../../src/files/io/node/files.js'
import { goldenPath } from '../../golden.js'
import { THOROUGH } from '../../thorough.js'

async function all(data: DataSource, options?: ReadOptions): Promise<Row[]> {
  const rows: Row[] = []
  for await (const row of readRows(data, options)) rows.push(row)
  return rows
}
const file = (content: string | Uint8Array, name = 'data.jsonl') =>
  new MemorySource(typeof content === 'string' ? new TextEncoder().encode(content) : content, name)
const rowsOf = async (data: DataSource, options?: ReadOptions) => (await all(data, options)).map(({ row }) => row)
const wheresOf = async (data: DataSource) => (await all(data)).map(({ where }) => where)

async function refusal(data: DataSource, options?: ReadOptions): Promise<LowrankError> {
  const error = await all(data, options).catch((error: unknown) => error)
  expect(error).toBeInstanceOf(LowrankError)
  return error as LowrankError
}

/** A text in which a read of 1 MiB ends inside `content`. */
const across = (content: string, before: number) => `${' '.repeat((1 << 20) - before)}${content}`

it('refuses what is nested too deep, in files and in memory, and goes on with the next record if it is asked to', async () => {
  const deep = `${'['.repeat(200_000)}${']'.repeat(200_000)}`
  const text = `{"text": ${deep}}\n{"text": "a"}\n{"messages": [{"role": "user", "content": "a", "more": ${deep}}]}`
  const circle: unknown[] = []
  circle.push({ circle })
  const forms: DataSource[] = [
    file(text),
    text.split('\n').map((line) => JSON.parse(line)),
    file(`[${text.replaceAll('\n', ',')}]`, 'a.json'),
  ]
  for (const data of [...forms, [circle], [JSON.parse(deep)]]) {
    expect((await refusal(data)).message).toMatch(/nested too deep; expected lists and objects of at most 100 levels/)
    const wrong: DataError[] = []
    const rows = await all(data, { onInvalid: (error) => wrong.push(error) })
    expect([rows.length, wrong.length]).toEqual(forms.includes(data) ? [1, 2] : [0, 1])
  }
})

describe('JSON', () => {
  it('reads lines, skips empty ones, and says where each was', async () => {
    const lines = ['{"text": "a", "id": 3}', '', '{"prompt": "p"}\r', '   ', '{"text": "é🐋"}']
    expect(await all(file(`\ufeff${lines.join('\n')}`))).toEqual([
      { row: { text: 'a', id: 3 }, where: 'data.jsonl, line 1' },
      { row: { prompt: 'p' }, where: 'data.jsonl, line 3' },
      { row: { text: 'é🐋' }, where: 'data.jsonl, line 5' },
    ])
  })

  it('joins characters and lines across reads', async () => {
    const lines = Array.from({ length: THOROUGH ? 40_000 : 20_000 }, (_, i) => JSON.stringify({ text: `${i} 🐋é日` }))
    const rows = await rowsOf(file(lines.join('\n')))
    expect(rows).toEqual(lines.map((line) => JSON.parse(line)))
    expect(await rowsOf(file(`[${lines.join(',\n')}]`, 'data.json'))).toEqual(rows)
  })

  it('reads a list as JSON.parse does, however it is laid out', async () => {
    const spaces = fc.constantFrom('', ' ', '\n', '\r\n\t ')
    await fc.assert(
      fc.asyncProperty(fc.array(fc.jsonValue(), { maxLength: 8 }), spaces, fc.nat(2), async (list, space, indent) => {
        const items = list.map((item) => JSON.stringify(item, null, indent))
        const text = `${space}[${space}${items.join(`${space},${space}`)}${space}]${space}`
        expect(await rowsOf(file(text, 'data.json'))).toEqual(JSON.parse(text))
      }),
    )
  })

  it.each([20, 11, 6, 1, 0])('reads a list that begins %i characters before the next read', async (before) => {
    const text = `[${across('{"a": "x,]\\"}"}, [1, {"b": 2}], "end"]', before)}`
    expect(await rowsOf(file(text, 'data.json'))).toEqual([{ a: 'x,]"}' }, [1, { b: 2 }], 'end'])
  })

  it('names the records of a list by their numbers', async () => {
    expect(await wheresOf(file('[\n  {"a": 1},\n\n  {\n "a": 2}]', 'x.json'))).toEqual([
      'x.json, record 1',
      'x.json, record 2',
    ])
  })

  it.each([
    ['{"text": "a"}\n{"text": \n', 'data.jsonl, line 2: not valid JSON'],
    ['[{"a": 1},\n {"a" 2}]', 'data.jsonl: not valid JSON'],
    ['[{"a": 1},]', 'data.jsonl: not valid JSON'],
    ['[{"a": 1}', 'The file is one list of JSON objects'],
    ['[{"a": 1}]]', 'not valid JSON'],
  ])('%j is refused', async (content, message) => {
    expect((await refusal(file(content))).message).toContain(message)
  })

  it('refuses bytes that are no UTF-8, by line', async () => {
    const bytes = Uint8Array.of(...new TextEncoder().encode('{}\n'), 0x7b, 0xff, 0x7d)
    expect((await refusal(file(bytes))).message).toContain('data.jsonl, in or after line 1: not valid UTF-8')
    expect((await refusal(file(Uint8Array.of(0x7b, 0xe2, 0x82)))).message).toContain('not valid UTF-8')
  })
})

describe('CSV and TSV', () => {
  const expected = JSON.parse(readFileSync(goldenPath('data', 'expected.json'), 'utf8'))

  it.each(['excel.csv', 'unix.csv', 'semicolons.csv', 'tabs.tsv'])('reads %s as Python does', async (name) => {
    const source = await openFile(goldenPath('data', name))
    expect(await rowsOf(source)).toEqual(expected.rows)
    await source.close()
  })

  it('reads fields that span reads', async () => {
    const content = 'a,"x ""y""\n",b\r\n"1",2,3'
    for (let before = 0; before <= content.length; before++) {
      const rows = await rowsOf(file(across(`\n${content}`, before).replace(' ', 'p,q,r\n'), 'x.csv'))
      expect(rows).toEqual([
        { p: 'a', q: 'x "y"\n', r: 'b' },
        { p: '1', q: '2', r: '3' },
      ])
    }
  })

  it('gives back what a writer wrote', async () => {
    const value = fc.string({ unit: fc.constantFrom('"', ',', '\n', '\r\n', 'a', ' ', 'é', "'") })
    await fc.assert(
      fc.asyncProperty(fc.array(fc.tuple(value, value), { minLength: 1 }), async (values) => {
        const quote = (field: string) => `"${field.replaceAll('"', '""')}"`
        const text = `a,b\n${values.map((fields) => fields.map(quote).join(',')).join('\n')}`
        expect(await rowsOf(file(text, 'x.csv'))).toEqual(values.map(([a, b]) => ({ a, b })))
      }),
    )
  })

  it('tells the lines of rows, past line breaks in quotes', async () => {
    expect(await wheresOf(file('a,b\n1,"x\n\ny"\n\n2,3\n', 'x.csv'))).toEqual(['x.csv, line 2', 'x.csv, line 6'])
  })

  it.each([
    ['a,b\n1,2\n3,"open\n4,5\n', 'x.csv, line 3: a quote that never closes'],
    ['a,b\n1,"x" y\n', 'x.csv, line 2: text after the quote that ends a field; got " y\\n"'],
    ['a,b\n1,2,3\n', 'x.csv, line 2: more fields than columns; expected 2 (a, b), got 3'],
    ['a,b\n\n1\n', 'x.csv, line 3: fewer fields than columns'],
    ['a,,b\n', 'line 1: column 2 has no name'],
    ['a,a\n', 'two columns have the name "a"'],
  ])('%j is refused', async (content, message) => {
    const error = await refusal(file(content, 'x.csv'))
    expect(error).toBeInstanceOf(DataError)
    expect(error.message).toContain(message)
  })

  it('leaves quotes inside a plain field alone', async () => {
    expect(await rowsOf(file('size\n5" screen\n', 'x.tsv'))).toEqual([{ size: '5" screen' }])
  })
})

describe('CSV of any size', () => {
  it('with 100,000 columns takes seconds', async () => {
    const names = Array.from({ length: 100_000 }, (_, i) => `c${i}`).join(',')
    const start = performance.now()
    const [row] = await rowsOf(file(`${names}\n${names}\n`, 'x.csv'))
    expect((row as Record<string, string>).c99999).toBe('c99999')
    expect((await refusal(file(`${names},c5\n`, 'x.csv'))).message).toContain('two columns have the name "c5"')
    expect(performance.now() - start).toBeLessThan(10_000)
  }, 20_000)

  it('names the line of the quote where a field begins that is too long', async () => {
    const start = new TextEncoder().encode(`a,b\n${'1,2\n'.repeat(10)}"x\ny","`)
    const byteLength = 70_000_000
    const source: ByteSource = {
      name: 'x.csv',
      byteLength,
      async read(offset, length) {
        const bytes = new Uint8Array(length).fill(0x7a)
        if (offset === 0) bytes.set(start.subarray(0, length))
        bytes[length - 1] = 0x0a // lines inside the field do not count
        return bytes
      },
      close: async () => {},
    }
    expect((await refusal(source)).message).toMatch(/^x\.csv, line 13: a record that is too long/)
  })

  const parts = THOROUGH ? ['abcdefg,', ',', '"a\nb",'] : []
  it.each(parts)(
    'holds no record of 70 MB of the fields %j',
    async (part) => {
      const error = await refusal(file(`a,b\n${part.repeat(Math.ceil(70_000_000 / part.length))}`, 'x.csv'))
      expect(error).toBeInstanceOf(DataError)
      expect(error.message).toMatch(/x\.csv, line 2: a record that is too long|more fields/)
    },
    60_000,
  )
})

describe('Parquet', () => {
  const expected = JSON.parse(readFileSync(goldenPath('data', 'expected.json'), 'utf8'))
  const open = (name: string) => openFile(goldenPath('data', name))

  it.each(['snappy', 'zstd', 'gzip'])('reads several row groups, %s', async (codec) => {
    const source = await open(`${codec}.parquet`)
    const rows = await all(source)
    expect(rows.map(({ row }) => row)).toEqual(expected.rows)
    expect(rows[4].where).toMatch(/parquet, row 5$/)
    await source.close()
  })

  it.each(['version2', 'encodings1', 'encodings2', 'pages', 'plain'])(
    'reads every type and encoding, %s',
    async (name) => {
      const source = await open(`${name}.parquet`)
      expect(await rowsOf(source)).toEqual(expected.mixed)
      await source.close()
    },
  )

  it('reads lists of messages', async () => {
    const source = await open('nested.parquet')
    expect(await rowsOf(source)).toEqual(expected.chats)
    const rows = await rowsOf(source, { columns: { messages: 'messages' } })
    expect(rows).toEqual(expected.chats.map(({ messages }: { messages: unknown }) => ({ messages })))
    await source.close()
  })

  it('reads a Buffer that is a part of a larger one', async () => {
    const bytes = readFileSync(goldenPath('data', 'snappy.parquet'))
    const part = Buffer.concat([Buffer.alloc(16), bytes]).subarray(16)
    expect(await rowsOf(new MemorySource(part, 'x.parquet'))).toEqual(expected.rows)
  })

  it('refuses a broken file', async () => {
    const bytes = readFileSync(goldenPath('data', 'snappy.parquet'))
    const error = await refusal(file(new Uint8Array(bytes.subarray(0, bytes.length - 9)), 'x.parquet'))
    expect(error).toBeInstanceOf(DataError)
    expect(error.message).toContain('x.parquet: cannot be read as Parquet')
  })

  it('passes on what a file throws', async () => {
    const bytes = readFileSync(goldenPath('data', 'snappy.parquet'))
    const whole = file(new Uint8Array(bytes), 'x.parquet')
    const failing: ByteSource = {
      ...whole,
      name: 'x.parquet',
      byteLength: bytes.length,
      read: whole.read.bind(whole),
    } as never
    const broken = {
      ...failing,
      read: (at: number, n: number) => (at > 0 ? whole.read(bytes.length, n) : whole.read(at, n)),
    }
    expect((await refusal(broken as never)).code).toBe('FILE')
  })
})

describe('text files', () => {
  it('takes paragraphs', async () => {
    expect(await all(file('\n\none\ntwo\r\n\r\n \nthree\n', 'book.txt'))).toEqual([
      { row: { text: 'one\ntwo' }, where: 'book.txt, line 3' },
      { row: { text: 'three' }, where: 'book.txt, line 7' },
    ])
  })
})

describe('the format', () => {
  it.each([
    ['x.JSONL', '{}', 'jsonl'],
    ['x.jsonl', ' \n[{}]', 'json-array'],
    ['x.json', '{}', 'jsonl'],
    ['x.ndjson', '', 'jsonl'],
    ['x.csv', '{', 'csv'],
    ['x.tab', 'a', 'tsv'],
    ['x.txt', '{', 'text'],
    ['download', '[', 'json-array'],
    ['https://host/data.csv?download=true', 'a', 'csv'],
    ['x.jsonl', 'PAR1…', 'parquet'],
  ])('of %s with %j is %s', async (name, content, format) => {
    expect(await detectFormat(file(content, name))).toBe(format)
  })

  it('must be told', async () => {
    expect((await refusal(file('hello', 'x.doc'))).message).toContain('expected a name that ends in .jsonl')
    expect((await refusal(file(Uint8Array.of(0x1f, 0x8b, 8), 'x.jsonl'))).message).toContain('Unpack it first')
  })
})

it.each(['a.jsonl', 'a.json', 'a.csv', 'a.tsv', 'a.txt'])('reads %s packed as it reads it plain', async (name) => {
  const content = /json/.test(name) ? '{"text": "é"}\n'.repeat(1e5) : 'text\té,\n'.repeat(1e5)
  const plain = await all(file(content, name)).catch(String)
  const packed = await all(file(gzipSync(content), `${name}.gz`)).catch(String)
  expect(JSON.stringify(packed).replaceAll('.gz', '')).toBe(JSON.stringify(plain))
  const cut = gzipSync(content)
  const error = await refusal(file(cut.subarray(0, cut.length - 9), `${name}.gz`))
  if (typeof plain !== 'string') expect(error.message).toContain('not valid gzip, or not whole')
})

it('reads the list in the field data, but not in lines', async () => {
  const list = [{ text: 'a' }, { text: 'b' }]
  for (const name of ['a.json', 'download']) {
    expect(await rowsOf(file(JSON.stringify({ data: list, version: 1 }, null, 1), name))).toEqual(list)
  }
  expect(await rowsOf(file(JSON.stringify({ data: list })))).toEqual([{ data: list }])
})

describe('sources', () => {
  it('are records in memory, of any kind of list', async () => {
    const records = [{ text: 'a' }, { text: 'b' }]
    expect(await all(records)).toEqual([
      { row: { text: 'a' }, where: 'data[0]' },
      { row: { text: 'b' }, where: 'data[1]' },
    ])
    async function* stream() {
      yield* records
    }
    expect(await rowsOf(stream())).toEqual(records)
    expect(await rowsOf(new Set(records))).toEqual(records)
  })

  it('are several files, and the data of a folder', async () => {
    const folder = new MemoryDirectory({
      'b.jsonl': '{"n": 2}',
      'a.csv': 'n\n1',
      'README.txt': 'not data',
      'picture.png': '',
      'dataset_info.json': '{}',
    })
    expect(await rowsOf(folder)).toEqual([{ n: '1' }, { n: 2 }])
    expect(await rowsOf([file('{"n": 3}'), folder])).toEqual([{ n: 3 }, { n: '1' }, { n: 2 }])
  })

  it.each([
    [new MemoryDirectory({ 'model.onnx': '' }), 'no data in this folder', DataError],
    [
      new MemoryDirectory({ 'config.json': '{}', 'a.jsonl': '' }),
      'holds a model or an adapter (config.json)',
      DataError,
    ],
    [new MemoryDirectory({ 'train.jsonl': '', 'test.jsonl': '' }), 'parts for training and for testing', DataError],
    [7 as never, 'neither records nor a file; got number', ConfigError],
    [null as never, 'got null', ConfigError],
  ])('are refused otherwise: %#', async (data, message, kind) => {
    const error = await refusal(data)
    expect(error).toBeInstanceOf(kind)
    expect(error.message).toContain(message)
  })

  it('takes the parts of one split', async () => {
    const folder = new MemoryDirectory({ 'train-00000.jsonl': '{"n": 1}', 'train-00001.jsonl': '{"n": 2}' })
    expect(await rowsOf(folder)).toEqual([{ n: 1 }, { n: 2 }])
  })

  it('are read byte by byte once, in pieces', async () => {
    const bytes = new TextEncoder().encode('{"text": "a"}\n'.repeat(200_000))
    const whole = new MemorySource(bytes, 'x.jsonl')
    const reads: number[] = []
    const counting = {
      name: 'x.jsonl',
      byteLength: bytes.length,
      read: (offset: number, byteLength: number) => {
        reads.push(byteLength)
        return whole.read(offset, byteLength)
      },
      close: async () => {},
    }
    expect(await all(counting)).toHaveLength(200_000)
    // The first reads find out the format, or what the file is if it has no records.
    const [head, , ...rest] = reads
    expect(head).toBeLessThan(10_000)
    expect(rest.reduce((sum, n) => sum + n)).toBe(bytes.length)
    expect(Math.max(...rest)).toBeLessThanOrEqual(1 << 20)
  })
})

describe('columns', () => {
  const columns = { prompt: 'question', completion: 'answer' }

  it('are renamed, others left out', async () => {
    expect(await rowsOf([{ question: 'q', answer: 'a', text: 't' }], { columns })).toEqual([
      { prompt: 'q', completion: 'a' },
    ])
  })

  it('must be there', async () => {
    const error = await refusal([{ question: 'q', anwser: 'a' }], { columns })
    expect(error.message).toBe('data[0]: no field "answer"; expected question, anwser. Did you mean anwser?')
    expect((await refusal(['q'], { columns })).message).toContain('data[0]: not a valid record')
    expect((await refusal([], { columns: [] as never })).code).toBe('CONFIG')
    expect((await refusal([], { columns: { prompt: 3 } as never })).code).toBe('CONFIG')
  })
})

describe('planSplit', () => {
  const chosen = (share: number, seed: number, rows: number) => {
    const isHeldOut = planSplit(share, seed)
    return Array.from({ length: rows }, (_, i) => i).filter((i) => isHeldOut(i))
  }

  it('keeps the share to within one row, for every number of rows', () => {
    fc.assert(
      fc.property(fc.double({ min: 0.001, max: 0.999, noNaN: true }), fc.nat(), fc.nat(2000), (share, seed, rows) => {
        expect(Math.abs(chosen(share, seed, rows).length - share * rows)).toBeLessThanOrEqual(1)
      }),
    )
  })

  it('depends on the seed, and on rows before alone', () => {
    expect(chosen(0.1, 7, 500)).toEqual(chosen(0.1, 7, 1000).filter((i) => i < 500))
    expect(chosen(0.1, 7, 500)).not.toEqual(chosen(0.1, 8, 500))
  })
})
