import { readFileSync } from 'node:fs'
import { describe, expect, it } from 'vitest'
import { DataError, FormatError, type LowrankError, MemoryDirectory, MismatchError } from '../../../src/api/node.js'
import { chatOf, parseChat } from '../../../src/model/text/chat.js'
import { answerTexts, encodeChat } from '../../../src/model/text/chat-encode.js'
import { loadChatTemplate } from '../../../src/model/text/chat-template.js'
import type { ChatTemplate } from '../../../src/model/text/template.js'
import { makeTokenizer } from '../../../src/model/text/tokenizer.js'
import { goldenPath } from '../../golden.js'

const user = (content: string) => ({ role: 'user', content })
const assistant = (content: string) => ({ role: 'assistant', content })
const system = (content: string) => ({ role: 'system', content })
const PLAIN =
  '{% for m in messages %}<{{ m.role }}>{{ m.content }}</{{ m.role }}>\n{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}'

const union = (file: string) => JSON.parse(readFileSync(`models/union-3m/${file}`, 'utf8'))
const tokenizer = makeTokenizer(union('tokenizer.json'), union('tokenizer_config.json'), 'union-3m')

async function template(text = PLAIN): Promise<ChatTemplate> {
  return (await loadChatTemplate(new MemoryDirectory({}, 'model'), text)) as ChatTemplate
}
const golden = async (name: string) => template(readFileSync(goldenPath('chat', 'templates', `${name}.jinja`), 'utf8'))

async function refusal(work: () => unknown): Promise<LowrankError> {
  try {
    await work()
  } catch (error) {
    return error as LowrankError
  }
  throw new Error('nothing was refused')
}

describe('parseChat', () => {
  it('reads messages, as a list or as JSON, and passes on what else they have', () => {
    const messages = [system('s'), user('u'), { ...assistant('a'), weight: 1 }]
    expect(parseChat({ messages, other: 1 }, 'x')).toEqual({
      messages,
      learnFrom: 0,
      tools: undefined,
      args: undefined,
    })
    expect(parseChat({ messages: JSON.stringify(messages) }, 'x').messages).toEqual(messages)
  })

  it('reads ShareGPT’s conversations', () => {
    const conversations = [
      { from: 'human', value: 'u' },
      { from: 'function_call', value: '{"name": "f", "arguments": {"x": 1}}' },
      { from: 'observation', value: '3' },
      { from: 'gpt', value: 'a' },
    ]
    expect(parseChat({ conversations, system: 's' }, 'x').messages).toEqual([
      system('s'),
      user('u'),
      {
        role: 'assistant',
        content: '',
        tool_calls: [{ type: 'function', function: { name: 'f', arguments: { x: 1 } } }],
      },
      { role: 'tool', content: '3' },
      assistant('a'),
    ])
    expect(parseChat({ conversations: [user('u'), assistant('a')], system: '' }, 'x').messages).toHaveLength(2)
  })

  it('learns from the completion of TRL’s lists alone', () => {
    const prompt = [user('a'), assistant('b'), user('c')]
    expect(parseChat({ prompt, completion: [assistant('d')] }, 'x')).toMatchObject({ learnFrom: 3 })
    expect(parseChat({ prompt, completion: 'd' }, 'x').messages).toEqual([...prompt, assistant('d')])
  })

  it('takes tools as a list or as JSON', () => {
    const messages = [user('u'), assistant('a')]
    const tools = [{ type: 'function', function: { name: 'f' } }]
    expect(parseChat({ messages, tools }, 'x').tools).toEqual(tools)
    expect(parseChat({ messages, tools: JSON.stringify(tools) }, 'x').tools).toEqual(tools)
    expect(parseChat({ messages, tools: [] }, 'x').tools).toBeUndefined()
  })

  it('joins parts of text, drops nulls, and names reasoning as templates do', () => {
    const parts = [
      { type: 'text', text: 'a' },
      { type: 'text', text: 'b' },
    ]
    const answer = { role: 'assistant', content: 'c', tool_calls: null, reasoning: 'r' }
    expect(parseChat({ messages: [{ role: 'user', content: parts }, answer] }, 'x').messages).toEqual([
      user('ab'),
      { role: 'assistant', content: 'c', reasoning: 'r', thinking: 'r', reasoning_content: 'r' },
    ])
  })

  it.each([
    [
      [user('a'), { role: 'bot', content: 'b' }],
      'x, message 2: an unknown role; expected system, developer, user',
      '"bot"',
    ],
    [[{ content: 'a' }], 'x, message 1: an unknown role', 'got no role'],
    [[user('a'), { role: 'assistant' }], 'x, message 2: no content', ''],
    [[user('a'), { role: 'assistant', content: null, tool_calls: [] }], 'x, message 2: no content', ''],
    [[{ role: 'user', content: 3 }], 'x, message 1: content that is not text', ''],
    [[{ role: 'user', content: [{ type: 'image' }] }], 'content that is not text', 'Only parts of the form'],
    [['a'], 'x, message 1: not a message', ''],
    [[user('a'), { ...assistant('b'), weight: 0.5 }], 'x, message 2: a weight that is not read; expected 0 or 1', ''],
    [[user('a'), { ...assistant('b'), weight: '0' }], 'a weight that is not read', 'got "0"'],
    [[], 'x: a chat without messages', ''],
    ['{', 'x: "messages" is not a list', ''],
    [3, '"messages" is not a list; expected a list, or one as JSON, got number', ''],
  ])('refuses %j', async (messages, message, more) => {
    const error = await refusal(() => parseChat({ messages }, 'x'))
    expect(error).toBeInstanceOf(DataError)
    expect(error.message).toContain(message)
    expect(error.message).toContain(more)
  })

  it('refuses variables that are no object', async () => {
    const record = { messages: [user('u')], chat_template_kwargs: '{}' }
    expect((await refusal(() => parseChat(record, 'x'))).message).toContain('"chat_template_kwargs" is not an object')
  })

  it('refuses a call that is none', async () => {
    const conversations = [
      { from: 'human', value: 'u' },
      { from: 'function_call', value: 'f(1)' },
    ]
    expect((await refusal(() => parseChat({ conversations }, 'x'))).message).toContain(
      'x, message 2: not a function call',
    )
  })
})

describe('loadChatTemplate', () => {
  const render = async (files: Record<string, string>, options = {}) => {
    const found = (await loadChatTemplate(new MemoryDirectory(files, 'model')))!
    return found.render([user('hi')], options, 'x').text
  }
  const config = (chat_template: unknown) => ({
    'tokenizer_config.json': JSON.stringify({ chat_template, bos_token: { content: '<s>' }, eos_token: null }),
  })

  it('finds it in either place, the file first', async () => {
    expect(await render(config('{{ bos_token }}{{ messages[0].content }}{{ eos_token }}'))).toBe('<s>hi')
    expect(await render({ ...config('a'), 'chat_template.jinja': 'b' })).toBe('b')
    expect(await loadChatTemplate(new MemoryDirectory({}))).toBeUndefined()
    expect(await loadChatTemplate(new MemoryDirectory(config(undefined)))).toBeUndefined()
  })

  it('chooses among named ones: that for tools where there are tools', async () => {
    const list = [
      { name: 'tool_use', template: 'tools' },
      { name: 'default', template: 'plain' },
    ]
    expect(await render(config(list))).toBe('plain')
    expect(await render(config(list), { tools: [{}] })).toBe('tools')
    expect(await render(config([{ name: 'rag', template: 'only' }]))).toBe('only')
  })

  it('takes lines that end as on Windows as Jinja does', async () => {
    expect(await render({ 'chat_template.jinja': '{% if true %}\r\na\r\nb\r\n{% endif %}\r\n' })).toBe('a\nb\n')
  })

  it.each([
    [{ 'chat_template.jinja': '{% for m in messages %}' }, 'chat_template.jinja: the chat template cannot be read'],
    [
      config([
        { name: 'a', template: '' },
        { name: 'b', template: '' },
      ]),
      'several chat templates and none named default; got a, b',
    ],
    [config(3), 'tokenizer_config.json: chat_template is neither a text nor a list of named texts'],
    [config([{ name: 'a' }]), 'neither a text nor a list'],
  ])('refuses %j', async (files, message) => {
    const error = await refusal(() => loadChatTemplate(new MemoryDirectory(files as Record<string, string>, 'model')))
    expect(error).toBeInstanceOf(FormatError)
    expect(error.message).toContain(message)
  })

  it('says what the template said when it fails', async () => {
    const raising = await template("{{ raise_exception('Only one user') }}")
    const error = await refusal(() => raising.render([], {}, 'chats.jsonl, line 3'))
    expect(error).toBeInstanceOf(DataError)
    expect(error.message).toContain(
      "chats.jsonl, line 3: the model's chat template does not take this chat (Only one user)",
    )
    expect(error.message).toContain('`chatTemplate`')
  })

  it.each([
    ['| tojson', '{"city": "Rome"}', '{"city": "Rome"}'],
    ['+ ";"', '{"city":"Rome"};', '{"city":"Rome"};'],
    ['~ ";"', '{"city":"Rome"};', '{"city":"Rome"};'],
  ])('gives a template that writes arguments %s what it can write', async (form, ...texts) => {
    const writes = await template(`{{ messages[0].tool_calls[0].function.arguments ${form} }}`)
    const call = (args: unknown) => {
      const calls = [{ type: 'function', function: { name: 'f', arguments: args } }]
      return { role: 'assistant', content: '', tool_calls: calls }
    }
    const written = (args: unknown) => writes.render([call(args)], {}, 'x').text
    expect(written('{"city":"Rome"}')).toBe(texts[0])
    if (form === '| tojson') expect(written({ city: 'Rome' })).toBe(texts[1])
    else expect((await refusal(() => written({ city: 'Rome' }))).message).toContain('cannot be joined')
    expect(written('no JSON')).toContain('no JSON')
  })

  it('refuses the characters that it marks with', async () => {
    const marking = await template('{% generation %}{{ messages[0].content }}{% endgeneration %}')
    expect((await refusal(() => marking.render([user('\ufdd0')], {}, 'x'))).message).toContain('U+FDD0')
  })

  it('finds marks in what is rendered, and not in comments', async () => {
    const mark = '{% generation %}a{% endgeneration %}'
    const isMarked = async (text: string) => (await template(text)).marksGeneration
    expect(await isMarked(`{% for m in messages %}{# c #}{% if true %}${mark}{% endif %}{% endfor %}`)).toBe(true)
    expect(await isMarked(`{# ${mark} #}{% for m in messages %}{{ m.content }}{% endfor %}`)).toBe(false)
  })
})

describe('encodeChat', () => {
  const parse = (record: object) => parseChat(record as never, 'x')
  const encode = async (record: object, maxLength = Number.POSITIVE_INFINITY, from = PLAIN) =>
    encodeChat(parse(record), { template: await template(from), tokenizer, maxLength }, 'x')
  const targetsOf = ({ inputIds, labels }: { inputIds: Int32Array; labels: Int32Array }) =>
    tokenizer.decode(
      [...inputIds].filter((_, i) => labels[i] !== -100),
      { specialTokens: true },
    )
  const textOf = ({ inputIds }: { inputIds: Int32Array }) => tokenizer.decode([...inputIds], { specialTokens: true })

  const CHAT = [system('be kind'), user('one'), assistant('two'), user('three'), assistant('four')]

  it('counts what the assistant writes, its end with it', async () => {
    const { examples } = await encode({ messages: CHAT })
    expect(examples.map(targetsOf)).toEqual(['two</assistant>\nfour</assistant>\n'])
    expect(textOf(examples[0])).toContain('<user>three</user>\n<assistant>four')
  })

  it('leaves out what comes after the last answer, and answers that are given', async () => {
    const open = await encode({ messages: [...CHAT, user('five')] })
    expect(textOf(open.examples[0])).not.toContain('five')
    const given = { prompt: CHAT.slice(0, 4), completion: [CHAT[4]] }
    expect((await encode(given)).examples.map(targetsOf)).toEqual(['four</assistant>\n'])
    const marked = PLAIN.replace('{{ m.content }}', '{% generation %}{{ m.content }}{% endgeneration %}')
    expect((await encode(given, 1e9, marked)).examples.map(targetsOf)).toEqual(['four'])
    expect((await encode({ messages: [user('a')] })).examples).toEqual([])
    expect(parse(given).messages).toEqual(chatOf('one', 'two', 'be kind').messages.concat(CHAT.slice(3)))
  })

  it('gives each answer a text of its own where thoughts of earlier turns are hidden', async () => {
    const messages = [
      user('A?'),
      assistant('<think>\nhm\n</think>\n\nB.'),
      user('C?'),
      assistant('<think>\nso\n</think>\n\nD.'),
    ]
    const { examples } = encodeChat(
      parse({ messages }),
      { template: await golden('qwen3'), tokenizer, maxLength: 1e9 },
      'x',
    )
    expect(examples.map(targetsOf)).toEqual([
      '<think>\nhm\n</think>\n\nB.<|im_end|>\n',
      '<think>\nso\n</think>\n\nD.<|im_end|>\n',
    ])
    expect(examples.map(textOf)[1]).not.toContain('hm')
  })

  it('renders an answer behind the prompt that asks for it', async () => {
    const empty = PLAIN.replace('<assistant>{% endif %}', '<assistant><thought></thought>{% endif %}')
    const [first, second] = (await encode({ messages: CHAT.slice(1) }, 1e9, empty)).examples
    expect(textOf(first)).toContain('</user>\n<assistant><thought></thought>two</assistant>\n')
    expect(targetsOf(first)).toBe('two</assistant>\n')
    expect(textOf(second)).toContain(
      '<assistant>two</assistant>\n<user>three</user>\n<assistant><thought></thought>four',
    )
  })

  it('refuses answers that cannot follow their prompt', async () => {
    const error = await refusal(async () =>
      encodeChat(chatOf('a', 'b'), { template: await golden('deepseek_r1_distill'), tokenizer, maxLength: 1e9 }, 'x'),
    )
    expect(error).toBeInstanceOf(MismatchError)
    expect(error.message).toContain('writes an answer in another form than it asks for one')
    expect(error.message).toContain('`chatTemplateArgs`')
  })

  it('loses early turns when it is too long, never the system message or the last answer', async () => {
    const length = async (messages: object[]) => (await encode({ messages })).examples[0].inputIds.length
    const whole = await length(CHAT)
    const short = await length([CHAT[0], ...CHAT.slice(3)])
    const cut = await encode({ messages: CHAT }, whole - 1)
    expect(cut).toMatchObject({ isShortened: true, lostAnswers: 0 })
    expect(textOf(cut.examples[0])).toBe(textOf((await encode({ messages: [CHAT[0], ...CHAT.slice(3)] })).examples[0]))
    expect(await encode({ messages: CHAT }, short)).toMatchObject({ isShortened: true, lostAnswers: 0 })
    expect(await encode({ messages: CHAT }, short - 1)).toMatchObject({
      examples: [],
      isShortened: false,
      lostAnswers: 1,
    })
    expect(await encode({ messages: CHAT }, whole)).toMatchObject({ isShortened: false })
  })

  it('keeps a call, its result and the answer together', async () => {
    const call = { role: 'assistant', content: 'call', tool_calls: [{ type: 'function', function: { name: 'f' } }] }
    const turn = [user('now'), call, { role: 'tool', content: 'result' }, assistant('done')]
    const { examples } = await encode({ messages: [user('long '.repeat(50)), assistant('ok'), ...turn] }, 120)
    expect(textOf(examples[0])).toContain('<user>now</user>')
    expect(targetsOf(examples[0])).toMatch(/^call\n<tool_call>\n.*"name": "f".*<\/assistant>\ndone<\/assistant>\n$/s)
  })

  it('marks nothing without an answer', async () => {
    const chat = parse({ messages: [system('s'), user('u')] })
    expect(answerTexts(chat, { template: await template() }, 'x').texts).toEqual([])
  })

  const ASSISTANT_MARKED = PLAIN.replace(
    '{{ m.content }}',
    '{% if m.role == "assistant" %}{% generation %}{{ m.content }}{% endgeneration %}{% else %}{{ m.content }}{% endif %}',
  )
  /** The condition never holds. It only trims the line break after it. */
  const JOINED = PLAIN.replace('</{{ m.role }}>', '</{{ m.role }}>{% if loop.last and false %}!{% endif %}')
  const HIDING = PLAIN.replace(
    '{{ m.content }}',
    "{{ m.content if loop.last or m.role != 'assistant' else m.content[:2] }}",
  )

  it.each([
    ['in one pass', PLAIN, 'four</assistant>\n'],
    ['without a line break after an answer', JOINED, 'four</assistant>'],
    ['by marks', ASSISTANT_MARKED, 'four'],
    ['one by one', HIDING, 'four</assistant>\n'],
  ])('learns nothing of answers of weight 0, found %s', async (_, from, last) => {
    const of = async (...weights: (number | undefined)[]) => {
      let i = 0
      const messages = CHAT.map((one) => (one.role === 'assistant' ? { ...one, weight: weights[i++] } : one))
      return (await encode({ messages }, 1e9, from)).examples
    }
    expect((await of(0, 1)).map(targetsOf)).toEqual([last])
    expect(textOf((await of(0, undefined))[0])).toContain('<assistant>tw')
    expect((await of(1, 0)).map(targetsOf)).toEqual([last.replace('four', 'two')])
    expect(await of(0, 0)).toEqual([])
  })

  it('takes train: false for weight 0', async () => {
    const chatOf = (field: object) => [user('a'), { ...assistant('b'), ...field }, user('c'), assistant('d')]
    const labels = async (field: object) => (await encode({ messages: chatOf(field) })).examples
    expect(await labels({ train: false })).toEqual(await labels({ weight: 0 }))
    expect(await labels({ train: true })).toEqual(await labels({}))
    expect(await labels({ train: false })).not.toEqual(await labels({}))
  })
  it('leaves out empty answers, and says so', async () => {
    const messages = [user('a'), assistant(''), user('b'), assistant('c'), user('d'), assistant(' \n')]
    for (const from of [PLAIN, JOINED, ASSISTANT_MARKED]) {
      const { examples, notes } = await encode({ messages }, 1e9, from)
      expect(examples.map(targetsOf).join('')).toMatch(/^c(<\/assistant>)?\n?$/)
      expect(notes).toEqual(['have empty answers, which are not learned'])
    }
    expect((await encode({ messages: messages.slice(0, 2) })).examples).toEqual([])
    expect((await encode({ messages: [user('a'), { ...assistant(''), weight: 0 }, ...CHAT.slice(1)] })).notes).toEqual(
      [],
    )
  })

  it('learns calls in a template without a place for them as sessions show them', async () => {
    const call = { role: 'assistant', tool_calls: [{ type: 'function', function: { name: 'f', arguments: {} } }] }
    const record = {
      tools: [{ type: 'function', function: { name: 'f' } }],
      messages: [user('now'), call, { role: 'tool', content: 'result' }, assistant('done')],
    }
    const placed = await encode(record, 1e9, PLAIN)
    expect(placed.examples.map(targetsOf)).toEqual([
      '<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call></assistant>\ndone</assistant>\n',
    ])
    expect(textOf(placed.examples[0])).toMatch(/<system>You are a function.*"name":"f".*<tool_response>\nresult/s)
    expect(placed.notes).toEqual([])
    const whole = PLAIN.replace('{{ m.content }}', '{{ m | tojson }}')
    const kept = await encode(record, 1e9, `{{ tools | tojson }}${whole}`)
    expect(kept.notes).toEqual([])
    expect(kept.examples.map(targetsOf).join('')).toContain('tool_calls')
  })

  it('says that reasoning is lost in a template without a place for it', async () => {
    const note =
      'have reasoning, for which the chat template has no place: write it into the content, or give a `chatTemplate`'
    const thinking = (content: string) => ({ ...assistant(content), reasoning: 'hm' })
    const messages = [user('a'), thinking('b'), user('c'), assistant('d')]
    expect((await encode({ messages }, 1e9, PLAIN)).notes).toEqual([note])
    expect((await encode({ messages: [user('a'), thinking('')] }, 1e9, PLAIN)).notes).toEqual([
      note,
      'have empty answers, which are not learned',
    ])
    for (const name of ['reasoning_content', 'thinking']) {
      const whole = PLAIN.replace('{{ m.content }}', `{{ m.${name} if loop.last }}{{ m.content }}`)
      const { notes, examples } = await encode({ messages }, 1e9, whole)
      expect(notes).toEqual([])
      expect(examples.map(targetsOf).join('')).toContain('hmb')
    }
  })

  it.each([
    ['an assistant that begins', [assistant('two'), user('three'), assistant('four')]],
    ['nothing but an answer', [assistant('twofour')]],
    ['two answers in a row', [user('one'), assistant('two'), assistant('four')]],
    ['two questions in a row', [user('one'), user('more'), assistant('twofour')]],
    ['a system message between', [user('one'), assistant('two'), system('be short'), user('x'), assistant('four')]],
    ['a tool that speaks unasked', [user('one'), { role: 'tool', content: '3' }, assistant('twofour')]],
  ])('takes %s where the template does', async (_, messages) => {
    const strict = `{% if messages[0].role == 'x' %}{% endif %}<s>${PLAIN}`
    for (const from of [PLAIN, JOINED, strict, ASSISTANT_MARKED]) {
      const { examples } = await encode({ messages }, 1e9, from)
      expect(
        examples
          .map(targetsOf)
          .join('')
          .replaceAll(/<.assistant>|\n/g, ''),
      ).toBe('twofour')
      expect(textOf(examples[0])).toContain(messages.at(-1)?.content)
    }
    const alternating = "{% if loop is defined %}{% endif %}{{ raise_exception('roles must alternate') }}"
    const error = await refusal(() => encode({ messages }, 1e9, alternating))
    expect(error).toBeInstanceOf(DataError)
    expect(error.message).toContain('roles must alternate')
  })

  it('takes a chat that is rendered as nothing', async () => {
    for (const messages of [
      [user(''), assistant('')],
      [user(''), assistant('x')],
    ]) {
      const { examples } = await encode(
        { messages },
        1e9,
        '{% for m in messages %}{{ m.content | replace("x", "") }}{% endfor %}',
      )
      expect(examples.flatMap(({ labels }) => [...labels])).toEqual([])
    }
  })

  it('refuses a completion that holds its prompt', async () => {
    const record = { prompt: CHAT.slice(0, 4), completion: CHAT }
    expect((await refusal(() => parse(record))).message).toContain('begins with the prompt again')
  })

  it.each([
    ['in one pass', 1500, PLAIN],
    ['by several renderings', 800, JOINED],
    ['with a text for each answer', 100, 'qwen3'],
    ['with a head', 200, 'llama3_2'],
  ])(
    'shortens a chat of many turns in seconds: %s',
    async (_, length, from) => {
      const thoughts = from === 'qwen3' ? '<think>h</think>' : ''
      const messages = Array.from({ length }, (_, i) => (i % 2 === 0 ? user('u') : assistant(`${thoughts}a`)))
      const named = from.includes('{') ? await template(from) : await golden(from)
      const start = performance.now()
      const result = encodeChat(parse({ messages }), { template: named, tokenizer, maxLength: 300 }, 'x')
      expect(performance.now() - start).toBeLessThan(40_000)
      expect(result).toMatchObject({ isShortened: true, lostAnswers: 0 })
      const lengths = result.examples.map(({ inputIds }) => inputIds.length)
      expect(Math.max(...lengths)).toBeLessThanOrEqual(300)
      // The pack is full: another example like the last would not fit.
      expect(lengths.at(-1)).toBeGreaterThan(300 - (lengths.at(-1) ?? 0) / 2)
    },
    60_000,
  )
})
