// The measures of an answer: the job's own grader, else one that fits the prompts, and a judge if the user names one.

import { type JudgeSettings, judge, openGrader, sameCalls } from '../../api/export/measures.js'
import { fitsSchema } from '../../api/parts/entry.js'
import { isObject, jsonIn } from '../../core/base/options.js'
import { type GraderModels, problemOf } from './move-plan.js'
import { callsOf, lastUserText, type Message, type Prompt, textOfMessage } from './prompts.js'
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
  score: (prompt, answer) => (isCall(prompt) ? Number(sameCalls(callsOf(prompt.wanted!), callsOf(answer))) : null),
}
const SCHEMA: Measure = { name: 'fits the schema', score: fitting }
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
  const measures: Measure[] = []
  if (isTraffic) measures.push(AGREEMENT)
  else if (hasGrader) {
    const grade = openGrader(job.grader, graderModels)
    const score: Measure['score'] = ({ row }, answer) => grade({ item: row, text: textOfMessage(answer) })
    measures.push({ name: `the job’s grader ${String(job.grader!.name ?? '')}`.trim(), score })
  } else {
    if (prompts.some(isText)) measures.push(EXACT)
    if (prompts.some(isCall)) measures.push(CALLS)
  }
  if (prompts.some(({ request }) => schemaOf(request) !== undefined)) measures.push(SCHEMA)
  if (judge !== undefined) measures.push(judgedBy(judge))
  return measures
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

function fitting({ request }: Prompt, answer: Message): number | null {
  const schema = schemaOf(request)
  return isObject(schema) ? Number(fitsSchema(jsonIn(textOfMessage(answer)), schema)) : null
}
