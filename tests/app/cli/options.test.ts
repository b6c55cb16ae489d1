import { describe, expect, it } from 'vitest'
import {
  choice,
  defineCommand,
  flagOf,
  parseCommand,
  readNumber,
  repeated,
  required,
  single,
  text,
  toggle,
  UsageError,
} from '../../../src/app/cli/options.js'
import { inFlags } from '../../../src/app/cli/program.js'
import { train } from '../../../src/app/cli/run/train.js'
import { commandHelp } from '../../../src/app/cli/show/help.js'
import { filesIn, textOf } from '../../structure/project.js'

const command = defineCommand({
  name: 'fit',
  summary: 'a line',
  about: 'A paragraph.',
  examples: ['lowrank fit --model m'],
  options: {
    model: required('DIR', 'the model'),
    adapter: repeated('DIR', 'adapters'),
    weightDecay: { ...single('X', 'decay', readNumber), fallback: '1e-3' },
    rank: { ...single('N', 'rank', (one) => readNumber(one)), fallback: '8' },
    seed: single('N', 'seed', (one) => readNumber(one)),
    schedule: choice(['cosine', 'linear'], 'how it falls', 'cosine'),
    note: text('TEXT', 'a note'),
    json: toggle('one document'),
  },
  run: async () => 0,
})

const parse = (...args: string[]) => parseCommand(command, args).values
const failure = (...args: string[]): Error => {
  try {
    parse(...args)
  } catch (error) {
    return error as Error
  }
  throw new Error('expected a failure')
}

describe('parseCommand', () => {
  it('reads options in both spellings, and leaves out what was not given', () => {
    expect(parse('--model', 'a b', '--rank=4', '--adapter', 'x', '--adapter=y', '--json')).toEqual({
      model: 'a b',
      adapter: ['x', 'y'],
      weightDecay: undefined,
      rank: 4,
      seed: undefined,
      schedule: 'cosine',
      note: undefined,
      json: true,
    })
  })

  it('keeps the order of options across names', () => {
    const { occurrences } = parseCommand(command, ['--adapter', 'x', '--model', 'm', '--adapter', 'y'])
    expect(occurrences.map(({ flag, value }) => `${flag} ${value}`)).toEqual([
      '--adapter x',
      '--model m',
      '--adapter y',
    ])
  })

  it('reads negative numbers and exponents', () => {
    expect(parse('--model', 'm', '--weight-decay', '-1e-3').weightDecay).toBe(-1e-3)
    expect(parse('--model', 'm', '--weight-decay', '.5').weightDecay).toBe(0.5)
    expect(parse('--model', 'm', '--seed', '0').seed).toBe(0)
  })

  it.each(['abc', '', '1,5', '1e400', '--', '1e', '8x', '0x10', 'Infinity', 'NaN'])(
    'refuses the number %j',
    (value) => {
      const error = failure('--model', 'm', `--rank=${value}`)
      expect(error).toBeInstanceOf(UsageError)
      expect(error.message).toContain('--rank')
      expect(error.message).toContain(value)
    },
  )

  it.each<[string[], string]>([
    [['--model', 'm', '--weight-decya', '1'], 'did you mean --weight-decay'],
    [['--model', 'm', '--wd', '1'], 'did you mean --weight-decay'],
    [['--model', 'm', '-r', '4'], 'no option -r; did you mean --rank'],
    [['--model', 'm', '--xyz', '4'], 'no option --xyz'],
    [['--model', 'm', '--no-json'], 'no option --no-json'],
    [['--json'], '--model DIR is missing'],
    [['--model'], '--model needs a value'],
    [['--model', '--json'], '--model needs a value'],
    [['--model', 'm', '--json=yes'], '--json takes no value'],
    [['--model', 'm', '--rank', '1', '--rank', '2'], "--rank is given twice: '1' and '2'"],
    [['--model', 'm', 'stray'], "unexpected argument 'stray'"],
    [['--model', 'm', '--', '--json'], "unexpected argument '--json'"],
    [['--model', 'm', '--schedule', 'step'], 'one of cosine, linear'],
    [['--model', 'm', '--schedule', 'cosin'], 'Did you mean cosine?'],
  ])('refuses %j as wrong usage', (args, message) => {
    const error = failure(...args)
    expect(error).toBeInstanceOf(UsageError)
    expect(error.message).toContain(message)
  })

  it('takes what a command is about without its name', () => {
    const about = { ...command, subject: ['model', 'adapter'] }
    expect(parseCommand(about, ['a/model', 'x', '--rank', '2', 'y']).values).toMatchObject({
      model: 'a/model',
      adapter: ['x', 'y'],
      rank: 2,
    })
    expect(parseCommand(about, ['--adapter', 'x', 'a/model']).values.model).toBe('a/model')
    expect(() => parseCommand(about, [])).toThrow('--model DIR is missing')
    expect(() => parseCommand(about, ['a', '--model', 'b'])).toThrow("--model is given twice: 'a' and 'b'")
    expect(() => parseCommand({ ...command, subject: ['model'] }, ['a', 'b'])).toThrow(
      "unexpected argument 'b': 'lowrank fit' takes MODEL",
    )
  })

  it('takes --base for --model, and the other way around', () => {
    expect(parse('--base', 'm').model).toBe('m')
    expect(failure('--base', 'm', '--model', 'n').message).toBe("--model is given twice: 'm' and 'n'")
    const based = { ...command, options: { base: required('DIR', 'the base') } }
    expect(parseCommand(based, ['--model', 'm']).values).toEqual({ base: 'm' })
  })
})

describe('commandHelp', () => {
  it('lists every option with its default', async () => {
    const help = await commandHelp(command, false)
    for (const key of Object.keys(command.options)) expect(help).toContain(flagOf(key))
    expect(help).toContain('lowrank fit --model DIR [options]')
    expect(help).toMatch(/--rank N .*default 8/)
    expect(help).toMatch(/--schedule cosine\|linear .*default cosine/)
    expect(help).toMatch(/--weight-decay X .*default 1e-3/)
  })

  it('opens with the ten common options of train, and lists every option once', async () => {
    const help = await commandHelp(train, false)
    const [[, common]] = help.matchAll(/^Options\n((?: .*\n)+)/gm)
    expect(common.match(/^ {2}--/gm)).toHaveLength(10)
    expect(
      help
        .match(/^ {2}(--\S+)/gm)
        ?.map((flag) => flag.trim())
        .sort(),
    ).toEqual(Object.keys(train.options).map(flagOf).sort())
    expect(help, 'options in no section').not.toContain('More options')
  })
})

describe('inFlags', () => {
  it.each([
    ['Use `weightDecay`, or leave out `json`', 'Use --weight-decay, or leave out --json'],
    ['Set `json: true`', 'Set --json'],
    ["Use `schedule: 'linear'`", 'Use --schedule linear'],
    ["Use `note: { prompt: 'question', completion: 'answer' }`", 'Use --note prompt=question,completion=answer'],
    ["Use `note: { tagNames: 'O B-PER' }`", 'Use --note "tagNames=O B-PER"'],
    ["Leave out `adapter: ['a', 'b']`", 'Leave out --adapter a,b'],
    ['Run `npm install` or `lowrank merge`; `other: 1` and `share` stay', undefined],
  ])('writes %j as the command line does', (message, expected = message) => {
    expect(inFlags(message, command)).toBe(expected)
  })

  it('is how messages name options: none has a flag of its own', () => {
    const others = /shellWord|`train --config|optimum-cli|npm install|lowrank [a-z$]|execArgv|command: \[|style\./
    const lines = filesIn('src', ['.ts']).flatMap((path) => {
      // Sentences of base/words.ts for places with `--` are for the command line alone.
      if (/^src\/((app\/cli|api\/report|serve|train\/handoff)\/|core\/base\/words)/.test(path)) return []
      return textOf(path)
        .split('\n')
        .filter((line) => /^(?!\s*(\*|\/[/*])).*['"`].*[ (`]--[a-z]/.test(line) && !others.test(line))
        .map((line) => `${path}: ${line.trim()}`)
    })
    expect(lines).toEqual([])
  })
})
