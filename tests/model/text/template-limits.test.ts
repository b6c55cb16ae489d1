// Chat templates from strangers that would run for hours or fill the memory. Each gives an error in bounded time.

import { describe, expect, it } from 'vitest'
import { DataError, FormatError, MemoryDirectory } from '../../../src/api/node.js'
import { loadChatTemplate } from '../../../src/model/text/chat-template.js'
import { cases } from '../../thorough.js'

const MESSAGES = [{ role: 'user', content: 'x' }]
const load = (text: string) => loadChatTemplate(new MemoryDirectory({}, 'model'), text)
const doubled = (start: string, times: number, next: string, rest: string) =>
  `{% set ns = namespace(a=${start}) %}{% for i in range(${times}) %}{% set ns.a = ${next} %}{% endfor %}${rest}`

describe('a template ends with an error', () => {
  it.each([
    ['a range without an end', '{% for i in range(10**12) %}x{% endfor %}', 'a range of 1000000000000 numbers'],
    ['empty loops', '{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}', 'too long'],
    ['a text that doubles', doubled('"x"', 60, 'ns.a ~ ns.a', '{{ ns.a }}'), /too long|more than/],
    ['replacements by itself', doubled('"aaaaaaaaaa"', 40, 'ns.a | replace("a", ns.a)', ''), 'too long'],
    ['one large replacement', doubled('"a"', 20, 'ns.a ~ ns.a', '{{ ns.a.replace("a", ns.a) }}'), 'string length'],
    ['lists in lists', doubled('[1]', 60, '[ns.a, ns.a]', '{{ ns.a | tojson }}'), 'more than 16777216'],
    ['a list that doubles', doubled('[1]', 60, 'ns.a + ns.a', ''), /too long|more than/],
    ['a namespace in itself', '{% set ns = namespace() %}{% set ns.a = ns %}{{ ns | tojson }}', /stack|nested/],
    ['wide lines', '{{ "a\nb" | indent(10**9) }}', 'string length'],
    [
      'a large text that is looked through again and again',
      `${doubled('"x"', 23, 'ns.a ~ ns.a', '')}{% for i in range(99999) %}{% set x = "y" in ns.a %}{% endfor %}`,
      'too long',
    ],
    ...cases<[string, string, string | RegExp]>(
      [],
      [
        [
          'a macro that calls itself twice',
          '{% macro f(n) %}{% if n > 0 %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}{{ f(60) }}',
          'too long',
        ],
        ['namespaces in namespaces', doubled('1', 60, 'namespace(a=ns.a, b=ns.a)', '{{ ns.a | tojson }}'), 'too long'],
        [
          'a large list that is sorted again and again',
          '{% for i in range(9999) %}{% set x = range(99999) | sort | first %}{% endfor %}',
          'too long',
        ],
      ],
    ),
  ])(
    '%s',
    async (_, text, message) => {
      const template = await load(text)
      const start = performance.now()
      let error: unknown
      try {
        template?.render(MESSAGES, {}, 'chats.jsonl, line 3')
      } catch (thrown) {
        error = thrown
      }
      expect(error).toBeInstanceOf(DataError)
      expect((error as Error).message).toMatch(message)
      expect(performance.now() - start).toBeLessThan(60_000)
    },
    90_000,
  )

  it.each([
    ['comments that never close', '{#'.repeat(40_000), 'Missing end of comment'],
    ['tags that never close', '{%'.repeat(40_000), 'cannot be read'],
    ['spaces', `${' '.repeat(900_000)}{{ 1 }}`, 'more than 300 spaces'],
    ['parentheses', `{{ ${'('.repeat(100_000)}1${')'.repeat(100_000)} }}`, 'cannot be read'],
    ['a template of 2 MB', 'x'.repeat(2_000_000), 'more than 1000000 characters'],
  ])(
    'before it is rendered: %s',
    async (_, text, message) => {
      const start = performance.now()
      const error = await load(text).catch((error: unknown) => error)
      expect(error).toBeInstanceOf(FormatError)
      expect((error as Error).message).toContain(message)
      expect(performance.now() - start).toBeLessThan(10_000)
    },
    20_000,
  )

  it('is compiled in a time that grows with its length', async () => {
    const start = performance.now()
    expect((await load('{# #}'.repeat(40_000)))?.render(MESSAGES, {}, 'x').text).toBe('')
    expect(performance.now() - start).toBeLessThan(10_000)
  }, 20_000)

  it.each(['chat_template.jinja', 'tokenizer_config.json', 'chat_template.json'])(
    'is not read from a large %s',
    async (name) => {
      const large = {
        name,
        byteLength: 600_000_000,
        read: () => Promise.reject(new Error('it is read')),
        close: async () => {},
      }
      const directory = Object.assign(new MemoryDirectory({}, 'model'), {
        has: async (path: string) => path === name,
        open: async () => large,
      })
      await expect(loadChatTemplate(directory)).rejects.toThrow(FormatError)
      await expect(loadChatTemplate(directory)).rejects.toThrow(/too large/)
    },
  )
})

describe('a template still has', () => {
  it.each([
    ['{{ range(3) | list }}{{ range(1, 6, 2) | list }}{{ range(3, 0, -1) | list }}', '[0, 1, 2][1, 3, 5][3, 2, 1]'],
    ['{{ "abab".replace("a", "x") }}{{ "abab" | replace("a", "x", 1) }}', 'xbxbxbab'],
    [
      '{{ "abab".replace("a", "x", count=1) }}{{ "ab".replace("", "-") }}{{ "ab".replace("a", "b", 0) }}',
      'xbab-a-b-ab',
    ],
    ['{{ true and True }}{{ none is none }}{{ strftime_now("%Y") | length }}', 'truetrue4'],
    ['{% for m in messages[::-1] %}{{ m.content.strip("x") }}{{ loop.index }}{% endfor %}', '1'],
  ])('%s', async (text, expected) => {
    expect((await load(text))?.render(MESSAGES, {}, 'x').text).toBe(expected)
  })
})
