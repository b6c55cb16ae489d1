// The measures of an answer: the job's own grader, else one that fits the prompts, and a judge if the user names one.

import { type JudgeSettings, judge, openGrader } from '../../api/export/measures.js'
import { isObject, jsonIn } from '../../core/base/options.js'
import { type GraderModels, problemOf } from './move-plan.js'
import { callsOf, lastUserText, type Message, type Prompt, sameCalls, textOfMessage } from './prompts.js'
import type { Job } from './provider.js'

export interface Measure {
  readonly name: string
  /** True if it only says how near an answer is to that of the old model. */
  readonly isAgainstOld?: boolean
  /** 0 is worst. null: the prompt has nothing to measure. `first`: the answer that a judge compares with. */
  score(prompt: Prompt, answer: Message, first: Message): Promise<number | null> | number | null
}

const isText = ({ wanted }: Prompt) => wanted !== undefined && callsOf(wanted).length === 0
const isCall = ({ wanted }: Prompt) => wanted !== undefined && callsOf(wanted).length > 0
const sameText = (wanted: Message, answer: Message) =>
  Number(callsOf(answer).length === 0 && textOfMessage(wanted).trim() === textOfMessage(answer).trim())

const EXACT: Measure = {
  name: 'exact match',
  score: (prompt, answer) => (isText(prompt) ? sameText(prompt.wanted!, answer) : null),
}
const CALLS: Measure = {
  name: 'right calls',
  score: (prompt, answer) => (isCall(prompt) ? Number(sameCalls(prompt.wanted!, answer)) : null),
}
const SCHEMA: Measure = { name: 'fits the schema', score: fitsSchema }
const AGREEMENT: Measure = {
  name: 'agreement with the old answer',
  isAgainstOld: true,
  score: (prompt, answer) => EXACT.score(prompt, answer, answer) ?? CALLS.score(prompt, answer, answer),
}

/** The measures that have something to measure, the most important first. Stored chats have no right answer. */
export function measuresOf(
  job: Job,
  prompts: readonly Prompt[],
  { isTraffic, graderModels, judge }: { isTraffic: boolean; graderModels?: GraderModels; judge?: JudgeSettings },
): Measure[] {
  const hasGrader = job.grader !== undefined && problemOf(job.grader, graderModels) === undefined
  const fitting: Measure[] = []
  if (isTraffic) fitting.push(AGREEMENT)
  else if (hasGrader) {
    const grade = openGrader(job.grader, graderModels)
    const score: Measure['score'] = ({ row }, answer) => grade({ item: row, text: textOfMessage(answer) })
    fitting.push({ name: `the job’s grader ${String(job.grader!.name ?? '')}`.trim(), score })
  } else {
    if (prompts.some(isText)) fitting.push(EXACT)
    if (prompts.some(isCall)) fitting.push(CALLS)
  }
  if (prompts.some(({ request }) => schemaOf(request) !== undefined)) fitting.push(SCHEMA)
  if (judge !== undefined) fitting.push(judgedBy(judge))
  return fitting
}

/** 1 if the judge finds the answer better than the first model's, 0.5 for a tie, 0 if it is worse. */
function judgedBy(settings: JudgeSettings): Measure {
  return {
    name: `judged by ${settings.model} against the first`,
    score: ({ request, wanted }, answer, first) => {
      const [a, b] = [first, answer].map(textOfMessage)
      return judge(
        { prompt: lastUserText(request), wanted: wanted ? textOfMessage(wanted) : '', first: a, second: b },
        settings,
      )
    },
  }
}

/** The schema of the answers that a request wants; `{}` if it wants any JSON object, undefined for text. */
function schemaOf({ response_format: format }: Prompt['request']): unknown {
  if (!isObject(format) || format.type === 'text') return undefined
  return isObject(format.json_schema) ? format.json_schema.schema : { type: 'object' }
}

function fitsSchema({ request }: Prompt, answer: Message): number | null {
  const schema = schemaOf(request)
  return schema === undefined ? null : Number(fits(jsonIn(textOfMessage(answer)), schema))
}

const IS_TYPE: Readonly<Record<string, (value: unknown) => boolean>> = {
  string: (value) => typeof value === 'string',
  number: (value) => typeof value === 'number',
  integer: Number.isInteger,
  boolean: (value) => typeof value === 'boolean',
  null: (value) => value === null,
  array: Array.isArray,
  object: isObject,
}

/** The part of JSON Schema that strict response formats have, without patterns and limits. */
function fits(value: unknown, schema: unknown, root = schema): boolean {
  if (!isObject(schema)) return true
  const { type, enum: words, const: only, properties, required, items, additionalProperties, anyOf, $ref } = schema
  if (typeof $ref === 'string') return fits(value, inside(root, $ref), root)
  if (Array.isArray(anyOf)) return anyOf.some((option) => fits(value, option, root))
  if (Array.isArray(words) && !words.includes(value)) return false
  if (only !== undefined && only !== value) return false
  if (type !== undefined && ![type].flat().some((name) => IS_TYPE[String(name)]?.(value))) return false
  if (Array.isArray(value)) return value.every((item) => fits(item, items, root))
  if (!isObject(value)) return value !== undefined
  const known = isObject(properties) ? properties : {}
  const isWhole = !Array.isArray(required) || required.every((name) => Object.hasOwn(value, String(name)))
  const isClosed = additionalProperties !== false || Object.keys(value).every((name) => Object.hasOwn(known, name))
  return isWhole && isClosed && Object.entries(value).every(([name, member]) => fits(member, known[name], root))
}

/** Follows a reference such as `#/$defs/name` within a schema. */
const inside = (root: unknown, ref: string) =>
  ref
    .split('/')
    .slice(1)
    .reduce((at, name) => (isObject(at) ? at[name] : undefined), root)
