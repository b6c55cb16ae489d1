// Finds the command, runs it, and returns the exit code.

// The files of src/app/, in reading order:
//   cli/program.ts, cli/options.ts  from the command line to a command and its options
//   cli/run/, cli/manage/           a file for each command: for models, and for files
//   cli/show/                       what people see
//   openai/                         takes fine-tunes home from OpenAI and others
//   transformers/                   pipelines of transformers.js

import { readFileSync } from 'node:fs'
import { ConfigError, configureHub, LowrankError } from '../../api/index.js'
import { adviceOn, meantBy } from '../../core/base/words.js'
import { checkEarly } from './early.js'
import { type Command, flagOf, parseCommand, UsageError } from './options.js'
import { commandHelp, programHelp } from './show/help.js'
import { EXIT_INTERRUPTED, Interrupted } from './show/interrupt.js'
import { complain, print, say, showDownloads, spellMessages, usesColor, warn } from './show/terminal.js'

export const EXIT_KNOWN_ERROR = 1
const EXIT_USAGE = 2
/** EX_SOFTWARE of sysexits.h: an internal error. */
const EXIT_BUG = 70

export const COMMANDS: Record<string, () => Promise<Command>> = {
  init: async () => (await import('./run/init.js')).init,
  data: async () => (await import('./run/data.js')).data,
  'data mine': async () => (await import('./run/mine.js')).mine,
  'data synthesize': async () => (await import('./run/synthesize.js')).synthesize,
  train: async () => (await import('./run/train.js')).train,
  evaluate: async () => (await import('./run/evaluate.js')).evaluate,
  report: async () => (await import('./manage/report.js')).report,
  handoff: async () => (await import('./run/handoff.js')).handoff,
  merge: async () => (await import('./manage/merge.js')).merge,
  unmerge: async () => (await import('./manage/merge.js')).unmerge,
  combine: async () => (await import('./manage/combine.js')).combine,
  resize: async () => (await import('./manage/resize.js')).resize,
  convert: async () => (await import('./manage/convert.js')).convert,
  diff: async () => (await import('./manage/diff.js')).diff,
  'to-plain': async () => (await import('./manage/to-plain.js')).toPlain,
  push: async () => (await import('./manage/push.js')).push,
  inspect: async () => (await import('./manage/inspect.js')).inspect,
  generate: async () => (await import('./run/generate.js')).generate,
  chat: async () => (await import('./run/chat.js')).chat,
  classify: async () => (await import('./run/classify.js')).classify,
  rerank: async () => (await import('./run/rerank.js')).rerank,
  embed: async () => (await import('./run/embed.js')).embed,
  serve: async () => (await import('./run/serve.js')).serve,
  'openai export': async () => (await import('./run/openai.js')).openaiExport,
  'openai record': async () => (await import('./run/openai.js')).openaiRecord,
  'openai move': async () => (await import('./run/openai.js')).openaiMove,
  'openai check': async () => (await import('./run/openai.js')).openaiCheck,
  jobs: async () => (await import('./run/jobs.js')).jobs,
  store: async () => (await import('./manage/store.js')).store,
}

/** Runs a command line. Errors that lowrank does not expect are thrown; `report` turns them into an exit code. */
export async function run(args: readonly string[]): Promise<number> {
  const name = commandIn(args)
  const rest = args.slice(name?.split(' ').length)
  if (name !== undefined && ['--version', '-v', '-V', 'version'].includes(name)) return show(version())
  if (name === undefined || name === '--help' || name === '-h' || name === 'help') {
    if (name === 'help' && rest.length > 0) return run([...rest, '--help'])
    const commands = await Promise.all(Object.values(COMMANDS).map((load) => load()))
    return show(programHelp(commands, usesColor(process.stdout)))
  }
  if (!Object.hasOwn(COMMANDS, name)) throw new UsageError(unknownCommand(name))
  const command = await COMMANDS[name]()
  const end = rest.indexOf('--')
  const options = end === -1 ? rest : rest.slice(0, end)
  if (options.includes('--help') || options.includes('-h'))
    return show(await commandHelp(command, usesColor(process.stdout), process.stdout.columns))
  const { values, occurrences } = parseCommand(command, rest)
  spellMessages((message) => inFlags(message, command))
  configureHub({ on: { download: showDownloads(), warning: warn } })
  try {
    await checkEarly(command, values)
    return await command.run(values, { occurrences })
  } catch (error) {
    if (error instanceof Interrupted) return EXIT_INTERRUPTED
    if (!(error instanceof LowrankError)) throw error
    const { where, message } = error
    const flag = where === undefined ? undefined : flagNamed(where, command)
    const model = where === 'ONNX model' ? (values.model ?? values.base) : undefined
    const shown = flag ?? (typeof model === 'string' ? model : undefined)
    complain('error', shown === undefined ? message : message.replace(where!, () => shown))
    return flag !== undefined && error instanceof ConfigError ? EXIT_USAGE : EXIT_KNOWN_ERROR
  }
}

/** The first word of a command line, or its first two if they name a command. */
export function commandIn(args: readonly string[]): string | undefined {
  const two = args.slice(0, 2).join(' ')
  return Object.hasOwn(COMMANDS, two) ? two : args[0]
}

function flagNamed(name: string, { options, apiNames = {} }: Command): string | undefined {
  const key = Object.hasOwn(apiNames, name) ? apiNames[name] : name
  return Object.hasOwn(options, key) ? flagOf(key) : undefined
}

/** Rewrites the options in a message for the command line: `` `maxSteps: 4` `` becomes --max-steps 4. */
export function inFlags(message: string, command: Command): string {
  return message.replaceAll(/`(\w+)(?:: ([^`]+))?`/g, (span, name: string, value?: string) => {
    const flag = flagNamed(name, command)
    if (flag === undefined) return span
    const written = value
      ?.replaceAll(/[{}[\]'"]/g, '')
      .trim()
      .replaceAll(/\s*:\s*/g, '=')
      .replaceAll(/,\s*/g, ',')
    return written === undefined || written === 'true'
      ? flag
      : `${flag} ${/\s/.test(written) ? `"${written}"` : written}`
  })
}

function show(text: string): number {
  print(text)
  return 0
}

function unknownCommand(name: string): string {
  if (name.startsWith('-')) return `the command comes first: lowrank <command> ${name}`
  const advice = adviceOn(name, ['lowrank'])
  if (advice !== undefined) return `there is no command '${name}'. ${advice}`
  const near = meantBy(name, Object.keys(COMMANDS), 'lowrank ')
  return `there is no command '${name}'; ${near !== undefined ? `did you mean ${near}?` : `there are ${Object.keys(COMMANDS).join(', ')}`}`
}

function version(): string {
  return JSON.parse(readFileSync(new URL('../../../package.json', import.meta.url), 'utf8')).version
}

export function report(error: unknown, name: string | undefined): number {
  if (error instanceof UsageError) {
    const command = name !== undefined && Object.hasOwn(COMMANDS, name) ? ` ${name}` : ''
    complain('error', error.message)
    say(`Run 'lowrank${command} --help' for the options.`)
    return EXIT_USAGE
  }
  if (error instanceof LowrankError) {
    complain('error', error.message)
    return EXIT_KNOWN_ERROR
  }
  if (isWriteError(error)) {
    complain('error', `stdout: cannot be written: ${error.message}`)
    return EXIT_KNOWN_ERROR
  }
  if (error instanceof Error && ['EMFILE', 'ENFILE'].includes((error as NodeJS.ErrnoException).code ?? '')) {
    complain('error', `${error.message}. Raise the limit of open files (ulimit -n 1024)`)
    return EXIT_KNOWN_ERROR
  }
  complain('error', `this is a bug in lowrank ${version()}; please report it with the lines below.`)
  say(error instanceof Error ? (error.stack ?? error.message) : String(error))
  return EXIT_BUG
}

/** True for an error of stdout, such as a full disk after `> file`. Errors of other files are LowrankErrors. */
export function isWriteError(error: unknown): error is NodeJS.ErrnoException {
  return error instanceof Error && (error as NodeJS.ErrnoException).syscall === 'write'
}
