// OpenAI's graders: checks their objects, and judges texts with them. No part of a grader is ever run as code.

import { ConfigError, NumericError, UnsupportedError } from '../../../core/base/errors.js'
import { checkArgument, describe, isObject, jsonIn, type OptionTable } from '../../../core/base/options.js'
import { bleu, fuzzyMatch, gleu, rouge } from '../../../model/text/similarity.js'
import {
  LABEL_MODEL_GRADER,
  MULTI_GRADER,
  SAMPLING_PARAMS,
  SCORE_MODEL_GRADER,
  STRING_CHECK_GRADER,
  TEXT_SIMILARITY_GRADER,
} from '../gen/options.js'
import type {
  Grader,
  GraderContent,
  GraderMessage,
  LabelModelGrader,
  MultiGrader,
  ScoreModelGrader,
  TextSimilarityGrader,
} from './forms.js'
import { parseFormula } from './formula.js'
import { encoderOf, type GraderModels, judgeOf } from './judges.js'
import type { Reward } from './rewards.js'
import { type Graded, parseTemplate } from './template.js'

/** Judges a text. Gives null if a model gave no usable grade. */
export type Grade = (graded: Graded) => Promise<number | null>

const TABLES: Readonly<Record<Grader['type'], OptionTable>> = {
  string_check: STRING_CHECK_GRADER,
  text_similarity: TEXT_SIMILARITY_GRADER,
  score_model: SCORE_MODEL_GRADER,
  label_model: LABEL_MODEL_GRADER,
  multi: MULTI_GRADER,
}

/** Similarities that need no model. */
const SIMILARITIES: Readonly<
  Record<Exclude<TextSimilarityGrader['evaluation_metric'], 'cosine'>, (text: string, wanted: string) => number>
> = {
  fuzzy_match: fuzzyMatch,
  bleu,
  gleu,
  rouge_1: (text, wanted) => rouge(text, wanted, 1),
  rouge_2: (text, wanted) => rouge(text, wanted, 2),
  rouge_3: (text, wanted) => rouge(text, wanted, 3),
  rouge_4: (text, wanted) => rouge(text, wanted, 4),
  rouge_5: (text, wanted) => rouge(text, wanted, 5),
  rouge_l: (text, wanted) => rouge(text, wanted, 'l'),
}

const STEPS = {
  type: 'array',
  items: {
    type: 'object',
    properties: { description: { type: 'string' }, conclusion: { type: 'string' } },
    required: ['description', 'conclusion'],
    additionalProperties: false,
  },
}

/** Makes a reward of a grader. `models` says what answers for the models that it names. */
export function rewardOf(grader: unknown, models: GraderModels = {}, where = 'grader'): Reward {
  const grade = openGrader(grader, models, where)
  const reward: Reward = ({ row, text }) => grade({ item: row, text })
  return Object.defineProperties(reward, { name: { value: (grader as Grader).name }, grader: { value: grader } })
}

/**
 * Checks a grader, and gives the function that judges with it. A text that is not the JSON that the grader asks for
 * gets the lowest grade.
 *
 * @param where what errors call it; they name the grader and the field
 * @throws ConfigError for an object that is not a grader, UnsupportedError for `python` and `meteor`. The function
 *   throws DataError for a record without a field that the grader names, and RuntimeError if a model does not answer
 */
export function openGrader(given: unknown, models: GraderModels = {}, where = 'grader'): Grade {
  const grader = checkGrader(given, where)
  const place = `${where} ${grader.name}`
  switch (grader.type) {
    case 'string_check': {
      const compare = {
        eq: (input: string, reference: string) => input === reference,
        ne: (input: string, reference: string) => input !== reference,
        like: (input: string, reference: string) => input.includes(reference),
        ilike: (input: string, reference: string) => input.toLowerCase().includes(reference.toLowerCase()),
      }[grader.operation]
      return onTexts(grader, place, async (input, reference) => Number(compare(input, reference)))
    }
    case 'text_similarity': {
      const { evaluation_metric: metric } = grader
      if (metric !== 'cosine') return onTexts(grader, place, async (...texts) => SIMILARITIES[metric](...texts))
      const encoder = encoderOf(models, `${place}, evaluation_metric`)
      return onTexts(grader, place, async (...texts) => cosine(await encoder.embed(texts)))
    }
    case 'score_model':
    case 'label_model':
      return askModel(grader, models, place)
    case 'multi':
      return joinGraders(grader, models, place)
  }
}

function checkGrader(given: unknown, where: string): Grader {
  if (!isObject(given))
    throw new ConfigError({ where, what: 'not a grader', expected: 'an object', got: describe(given) })
  const { type, name } = given
  const place = typeof name === 'string' && name !== '' ? `${where} ${name}` : where
  const refuse = (field: string, what: string) => {
    throw new UnsupportedError({ where: `${place}, ${field}`, what, got: String(given[field]) })
  }
  if (type === 'python') refuse('type', 'graders that run code are not supported')
  if (given.evaluation_metric === 'meteor') refuse('evaluation_metric', 'this similarity is not supported')
  if (typeof type !== 'string' || !Object.hasOwn(TABLES, type)) {
    const expected = Object.keys(TABLES).join(', ')
    throw new ConfigError({ where: `${place}, type`, what: 'no grader has this type', expected, got: describe(type) })
  }
  checkFields(given, TABLES[type as Grader['type']], place)
  return given as unknown as Grader
}

function checkFields(given: Record<string, unknown>, table: OptionTable, where: string): void {
  const unknown = Object.keys(given).find((name) => !Object.hasOwn(table, name))
  if (unknown !== undefined) {
    const hint = `There are ${Object.keys(table).join(', ')}`
    throw new ConfigError({ where: `${where}, ${unknown}`, what: 'this grader has no such field', hint })
  }
  for (const [name, kind] of Object.entries(table)) {
    const value = given[name]
    if (value !== undefined || kind.isRequired) checkArgument(value, kind, `${where}, ${name}`)
  }
}

function onTexts(
  { input, reference }: { readonly input: string; readonly reference: string },
  place: string,
  grade: (input: string, reference: string) => Promise<number>,
): Grade {
  const texts = [parseTemplate(input, `${place}, input`), parseTemplate(reference, `${place}, reference`)]
  return async (graded) => {
    const [first, second] = texts.map((text) => text(graded))
    return first === undefined || second === undefined ? 0 : grade(first, second)
  }
}

function cosine([a, b]: readonly Float32Array[]): number {
  const product = (x: Float32Array, y: Float32Array) => x.reduce((sum, value, i) => sum + value * y[i], 0)
  const lengths = Math.sqrt(product(a, a) * product(b, b))
  return lengths === 0 ? 0 : product(a, b) / lengths
}

function askModel(grader: ScoreModelGrader | LabelModelGrader, models: GraderModels, place: string): Grade {
  const { model } = grader
  const judge = judgeOf(model, models, `${place}, model`)
  const messages = grader.input.map((message, i) => messageTemplate(message, `${place}, input[${i}]`))
  const { result, gradeOf, lowest } = grader.type === 'score_model' ? scored(grader, place) : labeled(grader, place)
  const schema = {
    type: 'object',
    properties: { steps: STEPS, result },
    required: ['steps', 'result'],
    additionalProperties: false,
  }
  const options = { model, schema, ...(grader.type === 'score_model' && samplingOf(grader, place)) }
  return async (graded) => {
    const filled: { role: string; content: string }[] = []
    for (const { role, text } of messages) {
      const content = text(graded)
      if (content === undefined) return lowest
      filled.push({ role, content })
    }
    const answer = (await judge(filled, options)).trim()
    const value = jsonIn(/\{.*\}/s.exec(answer)?.[0])
    return gradeOf(isObject(value) ? value.result : (jsonIn(answer) ?? answer))
  }
}

function scored({ range = [0, 1] }: ScoreModelGrader, place: string) {
  const [low, high] = range
  if (range.length !== 2 || !(low < high)) {
    const expected = 'the smallest and the largest score'
    throw new ConfigError({ where: `${place}, range`, what: 'not a range', expected, got: describe(range) })
  }
  const gradeOf = (score: unknown) => (typeof score === 'number' && score >= low && score <= high ? score : null)
  return { result: { type: 'number' }, gradeOf, lowest: low }
}

function labeled({ labels, passing_labels: passing }: LabelModelGrader, place: string) {
  const other = passing.find((label) => !labels.includes(label))
  if (other !== undefined) {
    const expected = labels.join(', ')
    throw new ConfigError({ where: `${place}, passing_labels`, what: 'not one of the labels', expected, got: other })
  }
  const gradeOf = (label: unknown) =>
    labels.includes(label as string) ? Number(passing.includes(label as string)) : null
  return { result: { type: 'string', enum: labels }, gradeOf, lowest: 0 }
}

function samplingOf({ sampling_params: given = {} }: ScoreModelGrader, place: string) {
  const params = Object.fromEntries(Object.entries(given).filter(([, value]) => value !== null))
  checkFields(params, SAMPLING_PARAMS, `${place}, sampling_params`)
  const { temperature, top_p: topP, seed, max_completions_tokens: maxTokens, reasoning_effort: effort } = given
  const options = { temperature, topP, seed, maxTokens, reasoningEffort: effort }
  return Object.fromEntries(Object.entries(options).filter(([, value]) => value !== undefined && value !== null))
}

const ROLES: readonly unknown[] = ['user', 'assistant', 'system', 'developer'] satisfies GraderMessage['role'][]

function messageTemplate(message: GraderMessage, where: string) {
  if (!isObject(message) || !ROLES.includes(message.role)) {
    const expected = '{ role, content }'
    throw new ConfigError({ where, what: 'not a message', expected, got: describe(message) })
  }
  const { role, content } = message
  const contents = (Array.isArray(content) ? content : [content]) as readonly GraderContent[]
  const parts = contents.map((part, i) => {
    if (typeof part === 'string') return part
    if (isObject(part) && /^(input|output)_text$/.test(String(part.type)) && typeof part.text === 'string')
      return part.text
    const what = 'only texts can be judged'
    throw new UnsupportedError({
      where: `${where}, content[${i}]`,
      what,
      got: describe(isObject(part) ? part.type : part),
    })
  })
  return { role, text: parseTemplate(parts.join('\n'), `${where}, content`) }
}

function joinGraders({ graders, calculate_output: text }: MultiGrader, models: GraderModels, place: string): Grade {
  const names = Object.keys(graders)
  const nested = names.find((name) => isObject(graders[name]) && graders[name].type === 'multi')
  if (nested !== undefined) {
    throw new ConfigError({ where: `${place}, graders.${nested}`, what: 'a multi grader inside another' })
  }
  const opened = names.map((name) => openGrader(graders[name], models, `${place}, graders.${name}:`))
  const formula = parseFormula(text, names, `${place}, calculate_output`)
  return async (graded) => {
    const grades = await Promise.all(opened.map((grade) => grade(graded)))
    if (grades.includes(null)) return null
    const value = formula((name) => grades[names.indexOf(name)] as number)
    if (Number.isFinite(value)) return value
    const values = names.map((name, i) => `${name} = ${grades[i]}`).join(', ')
    throw new NumericError({
      where: `${place}, calculate_output`,
      what: 'not a finite number',
      got: `${value} with ${values}`,
    })
  }
}
