// Writes tests/golden/schemas/zod.json: schemas as Zod makes them, each with a text that Zod accepts and one that it
// refuses. Needs zod@4: npm install --no-save zod@4

import { mkdirSync, writeFileSync } from 'node:fs'
import { z } from 'zod'

const address = z.object({ street: z.string(), city: z.string().optional() })
const cat = z.object({ kind: z.literal('cat'), lives: z.int() })
const dog = z.object({ kind: z.literal('dog'), barks: z.boolean() })
const pet = z.discriminatedUnion('kind', [cat, dog])
const node = z.object({
  value: z.int(),
  get children() {
    return z.array(node)
  },
})
const one = (a) => z.object({ a })

const cases = {
  text: [one(z.string()), { a: 'x' }, { a: 1 }],
  'whole-number': [one(z.int()), { a: 3 }, { a: 'x' }],
  number: [one(z.number()), { a: 1.5 }, { a: 'x' }],
  truth: [one(z.boolean()), { a: true }, { a: 'x' }],
  nothing: [one(z.null()), { a: null }, { a: 1 }],
  several: [
    z.object({ a: z.string(), b: z.int(), c: z.boolean() }),
    { a: 'x', b: 1, c: false },
    { a: 'x', b: 'y', c: false },
  ],
  optional: [z.object({ a: z.string().optional(), b: z.int() }), { b: 1 }, { a: 'x' }],
  nullable: [one(z.string().nullable()), { a: null }, { a: 1 }],
  default: [z.object({ a: z.int().default(7), b: z.string() }), { a: 1, b: 'x' }, { a: 'x', b: 'x' }],
  bounds: [one(z.int().min(1).max(10)), { a: 10 }, { a: 11 }],
  above: [one(z.int().gt(0).lt(5)), { a: 4 }, { a: 5 }],
  lengths: [one(z.string().min(2).max(3)), { a: 'xy' }, { a: 'wxyz' }],
  pattern: [one(z.string().regex(/^[a-z]{3}$/)), { a: 'abc' }, { a: 'ab1' }],
  list: [one(z.array(z.string())), { a: ['x', 'y'] }, { a: 'x' }],
  'short-list': [one(z.array(z.int()).min(1).max(2)), { a: [1] }, { a: [] }],
  map: [one(z.record(z.string(), z.int())), { a: { x: 1 } }, { a: { x: 'y' } }],
  pair: [one(z.tuple([z.int(), z.string()])), { a: [1, 'x'] }, { a: ['x', 1] }],
  enum: [one(z.enum(['x', 'y'])), { a: 'y' }, { a: 'z' }],
  literal: [one(z.literal('x')), { a: 'x' }, { a: 'y' }],
  literals: [one(z.literal([1, 2])), { a: 2 }, { a: 3 }],
  nested: [one(address), { a: { street: 'x', city: 'y' } }, { a: { city: 'y' } }],
  'nested-list': [one(z.array(address)), { a: [{ street: 'x' }] }, { a: [1] }],
  described: [one(address.describe('where')), { a: { street: 'x' } }, { a: 1 }],
  union: [one(z.union([z.int(), z.string()])), { a: 'x' }, { a: [] }],
  discriminated: [one(pet), { a: { kind: 'dog', barks: true } }, { a: { kind: 'dog', lives: 1 } }],
  both: [
    one(z.intersection(z.object({ x: z.int() }), z.object({ y: z.int() }))),
    { a: { x: 1, y: 2 } },
    { a: { x: 1 } },
  ],
  closed: [z.strictObject({ a: z.int() }), { a: 1 }, { a: 1, b: 2 }],
  tree: [node, { value: 1, children: [{ value: 2, children: [] }] }, { value: 1, children: [1] }],
  days: [
    z.object({ a: z.iso.date(), b: z.iso.datetime(), c: z.iso.time() }),
    { a: '2026-12-31', b: '2026-01-31T23:59:59Z', c: '23:59:59' },
    { a: '2026-13-01', b: '2026-01-31T23:59:59Z', c: '23:59:59' },
  ],
  addresses: [
    z.object({ a: z.email(), b: z.url(), c: z.uuid(), d: z.ipv4() }),
    { a: 'me@example.com', b: 'https://example.com/a', c: '9f8b7c6d-5e4f-4a3b-8c2d-1e0f9a8b7c6d', d: '127.0.0.1' },
    { a: 'me', b: 'https://example.com/a', c: '9f8b7c6d-5e4f-4a3b-8c2d-1e0f9a8b7c6d', d: '127.0.0.1' },
  ],
}
if (Object.keys(cases).length !== 30) throw new Error('not 30')

const made = {}
for (const [name, [schema, valid, invalid]] of Object.entries(cases)) {
  schema.parse(valid)
  if (schema.safeParse(invalid).success) throw new Error(`${name}: not refused`)
  made[name] = { schema: z.toJSONSchema(schema, { io: 'input' }), valid, invalid }
}
const folder = new URL('../../tests/golden/schemas/', import.meta.url)
mkdirSync(folder, { recursive: true })
writeFileSync(new URL('zod.json', folder), `${JSON.stringify({ made_by: 'zod 4', cases: made }, null, 1)}\n`)
