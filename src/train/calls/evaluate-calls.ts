// Measures whether models call the right functions: for the base and each adapter, over the same requests, once free
// and once under the grammar of the functions.

import { ConfigError, counted, messageOf } from '../../core/base/errors.js'
import { toJson } from '../../core/base/options.js'
import { Steps } from '../../core/base/progress.js'
import { readRows } from '../../files/data/read-rows.js'
import type { LoraAdapter } from '../../lora/adapter.js'
import { otherWeights } from '../../model/base-record.js'
import type { Model } from '../../model/model-folder.js'
import { type CallVerdict, judgeCalls } from '../../model/text/calls/compare.js'
import { callsIn } from '../../model/text/calls/forms.js'
import { withoutKnownTools } from '../../model/text/calls/known-tools.js'
import { ModelSession } from '../../run/model-session.js'
import { bootstrap, meansOf } from '../evaluate/bootstrap.js'
import { type EvaluateSettings, withVerdicts } from '../evaluate/evaluate-adapters.js'
import type { DifferingRecord, EvaluatedModel, EvaluateReport } from '../evaluate/report.js'
import type { TrainingData } from '../options.js'
import { type CallRequest, callRequests, type DrawnAnswer, drawAnswers, requireRequests } from './requests.js'

const MAX_RECORD = 2000

interface Contender {
  readonly name: string | null
  readonly answers: readonly DrawnAnswer[]
  readonly verdicts: readonly CallVerdict[]
  readonly measures: readonly Readonly<Record<string, number>>[]
  readonly seconds: number
}

export async function evaluateCalls(
  model: Model,
  adapters: Readonly<Record<string, LoraAdapter>>,
  data: TrainingData,
  settings: EvaluateSettings,
): Promise<EvaluateReport> {
  const { device, threads, memory, on = { warning: console.warn } } = settings
  const asked = await readRequests(data, settings)
  for (const [name, { trainedOn }] of Object.entries(adapters)) {
    const difference = await otherWeights(trainedOn, model)
    if (difference !== undefined) on.warning?.(`${name}: ${difference}`)
  }
  // The base gets the template of the adapters, so that only the weights differ.
  const recorded = new Set(Object.values(adapters).flatMap(({ chatTemplate }) => chatTemplate ?? []))
  const { chatTemplate = recorded.size === 1 ? [...recorded][0] : undefined } = settings
  const low = memory === 'low' ? 'low' : 'fast'
  const session = await ModelSession.open(model, { adapters, device, threads, memory: low }, false, {
    onWarning: on.warning ?? (() => {}),
  })
  const names = Object.keys(adapters)
  return measureCalls(session, names, asked, { ...settings, on, chatTemplate }).finally(() => session.dispose())
}

/** Measures the base of a session, and the adapters that are named. */
export async function measureCalls(
  session: Parameters<typeof drawAnswers>[0],
  adapters: readonly string[],
  { requests, records }: Asked,
  settings: EvaluateSettings,
): Promise<EvaluateReport> {
  const { resamples = 1000, seed = 42, differing = 10, against = null, match, on = {} } = settings
  const { chatTemplate, chatTemplateArgs, batchSize, maxNewTokens = 128, signal } = settings
  const names = [null, ...adapters]
  if (!names.includes(against)) throw new ConfigError({ where: 'against', what: 'no such adapter', got: against! })
  const steps = new Steps(2 * names.length * requests.length, settings)
  const contenders: Contender[] = []
  for (const name of [against, ...names.filter((name) => name !== against)]) {
    const startedAt = performance.now()
    // The base does not know the functions of an adapter: its prompts describe them.
    const ofBase = chatTemplate && withoutKnownTools(chatTemplate)
    const drawing = {
      adapter: name,
      chatTemplate: name === null ? ofBase : chatTemplate,
      chatTemplateArgs,
      batchSize,
      maxNewTokens,
      signal,
    }
    const draw = (isKept: boolean) =>
      drawAnswers(session, requests, { ...drawing, isKept }, () => steps.next(name ?? 'base'))
    const answers = await draw(false)
    const kept = await draw(true).catch((error: unknown) => {
      if (!(error instanceof ConfigError)) throw error
      on.warning?.(`not measured under the grammar: ${messageOf(error)}`)
      return undefined
    })
    const verdicts = answers.map(({ calls }, i) => judgeCalls(calls, requests[i], match))
    const measures = verdicts.map((verdict, i) => {
      const free = measuresOf(answers[i], requests[i], verdict)
      const bound = kept && measuresOf(kept[i], requests[i], judgeCalls(kept[i].calls, requests[i], match))
      const named = Object.entries(bound ?? {}).map(([measure, value]) => [`grammar.${measure}`, value] as const)
      return { ...free, ...Object.fromEntries(named) }
    })
    contenders.push({ name, answers, verdicts, measures, seconds: (performance.now() - startedAt) / 1000 })
  }
  const statistics = contenders.map(({ measures }) => meansOf(measures))
  const intervals = bootstrap(statistics, requests.length, { resamples, seed })
  const lowerIsBetter = ['missedCalls', 'grammar.missedCalls']
  const models = contenders.map((contender, i): EvaluatedModel => {
    const { metrics, differences } = intervals[i]
    return {
      name: contender.name,
      metrics,
      differences: differences && withVerdicts(differences, lowerIsBetter),
      ...countsOf(contender, requests),
      seconds: contender.seconds,
    }
  })
  return {
    task: 'calls',
    records: requests.length,
    tokens: contenders[0].answers.reduce((sum, { promptTokens }) => sum + promptTokens, 0),
    lowerIsBetter,
    models,
    differBy: 'rightCalls',
    differing: wrongCalls(contenders, requests, records).slice(0, differing),
  }
}

interface Asked {
  readonly requests: readonly CallRequest[]
  /** The record of each request, as text. */
  readonly records: readonly string[]
}

/** Reads the requests of all records. */
export async function readRequests(data: TrainingData, { columns, on = {} }: EvaluateSettings): Promise<Asked> {
  const requests: CallRequest[] = []
  const records: string[] = []
  let left = 0
  for await (const { row, where } of readRows(data, { columns })) {
    const found = callRequests(row, where)
    if (found.length === 0) left++
    for (const request of found) {
      requests.push(request)
      records.push(toJson(row).slice(0, MAX_RECORD))
    }
  }
  requireRequests(requests)
  if (left > 0) on.warning?.(`left out, because they have no tools or no answer: ${counted(left, 'record')}`)
  return { requests, records }
}

/** Shares: 1 or 0, and NaN if a request does not count for one. */
function measuresOf({ calls }: DrawnAnswer, wanted: CallRequest, verdict: CallVerdict): Record<string, number> {
  const { isRight, hasRightFunctions, problems } = verdict
  const isDue = wanted.calls.length > 0
  const share = (counts: boolean, value: boolean) => (counts ? Number(value) : Number.NaN)
  const valid = problems.filter((problem) => problem === undefined).length
  return {
    rightCalls: share(isDue, isRight),
    rightFunctions: share(isDue, hasRightFunctions),
    rightArguments: share(isDue && hasRightFunctions, isRight),
    missedCalls: share(isDue, calls.length === 0),
    leftAlone: share(!isDue, calls.length === 0),
    validCalls: calls.length === 0 ? Number.NaN : valid / calls.length,
  }
}

function countsOf({ answers, verdicts }: Contender, requests: readonly CallRequest[]) {
  const functions = new Map<string, { name: string; due: number; called: number; right: number }>()
  const confusions = new Map<string, { wanted: string | null; called: string | null; count: number }>()
  const add = (name: string, field: 'due' | 'called' | 'right') => {
    const counts = functions.get(name) ?? { name, due: 0, called: 0, right: 0 }
    functions.set(name, { ...counts, [field]: counts[field] + 1 })
  }
  for (const [i, request] of requests.entries()) {
    const due = request.calls.map(({ name }) => name)
    const called = answers[i].calls.map(({ function: { name } }) => name)
    for (const name of due) add(name, 'due')
    for (const name of called) add(name, 'called')
    if (verdicts[i].isRight) for (const name of due) add(name, 'right')
    const left = [...called]
    const others = due.filter((name) => {
      const at = left.indexOf(name)
      if (at >= 0) left.splice(at, 1)
      return at < 0
    })
    const met = due.filter((name) => !others.includes(name)).map((name) => [name, name] as const)
    const rest = Array.from({ length: Math.max(others.length, left.length) }, (_, k) => [others[k], left[k]] as const)
    const none = due.length + called.length === 0 ? [[undefined, undefined] as const] : []
    for (const [wanted = null, made = null] of [...met, ...rest, ...none]) {
      const key = JSON.stringify([wanted, made])
      confusions.set(key, { wanted, called: made, count: (confusions.get(key)?.count ?? 0) + 1 })
    }
  }
  return {
    functions: [...functions.values()].sort((a, b) => b.due - a.due),
    confusions: [...confusions.values()].sort((a, b) => b.count - a.count),
  }
}

/** The requests that a model answers wrongly: first those on which the models differ. */
function wrongCalls(
  contenders: readonly Contender[],
  requests: readonly CallRequest[],
  records: readonly string[],
): DifferingRecord[] {
  const rights = requests.map((_, i) => contenders.map(({ verdicts }) => Number(verdicts[i].isRight)))
  const isSplit = (i: number) => new Set(rights[i]).size > 1
  const wrong = [...requests.keys()].filter((i) => rights[i].includes(0))
  return [...wrong.filter(isSplit), ...wrong.filter((i) => !isSplit(i))].map((i) => ({
    where: requests[i].where,
    record: asked(requests[i]) ?? records[i],
    values: rights[i],
    wanted: requests[i].calls.map(shown).join('\n') || 'no call',
    answers: contenders.map(({ answers }) => callsIn(answers[i].calls).map(shown).join('\n') || answers[i].text),
  }))
}

function asked({ messages }: CallRequest): string | undefined {
  const content = messages.findLast(({ role }) => role === 'user')?.content
  return typeof content === 'string' ? content.slice(0, MAX_RECORD) : undefined
}

const shown = ({ name, arguments: args }: ReturnType<typeof callsIn>[number]) => `${name} ${JSON.stringify(args)}`
