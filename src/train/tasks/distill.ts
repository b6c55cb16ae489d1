// Distillation on the student's own texts (Agarwal et al. 2024, arXiv 2306.13649), as in TRL 1.16: the student writes,
// and a teacher says how it would have gone on. A local teacher gives its whole distribution (DistillationTrainer), a
// server only the probability of each token (ServerDistillationTrainer).

import { ConfigError } from '../../core/base/errors.js'
import type { DistillOptions } from '../loop/distill.js'
import { DistilledTokens } from '../loop/distilled-tokens.js'
import { DISTILL_OPTIONS } from '../loop/gen/options.js'
import { PROMPTS, type PromptRow } from '../loop/prompt-rows.js'
import { ScoredTokens } from '../loop/token-scores.js'
import type { TeachingTask } from '../run.js'
import { causalLm } from './causal-lm.js'
import type { TaskInputs } from './task.js'

export const distill: TeachingTask<PromptRow, PromptRow, DistillOptions> = {
  ...PROMPTS,
  name: 'distill',
  learns: 'what a larger model would write',
  options: DISTILL_OPTIONS,
  takes: () => ['teacher'],
  check(model, given) {
    causalLm.check(model)
    if (given !== undefined) checkTeacher(given)
  },
  open(model, _, { beta = 1, temperature = 1 } = {}, { teacher } = {}) {
    const isServer = teacher !== undefined && 'url' in teacher
    return (isServer ? new ScoredTokens(model, false) : new DistilledTokens(model, temperature, beta)) as never
  },
  lessons: async (run, learner) => (await import('../loop/distill.js')).teacherLessons(run, learner),
}

function checkTeacher({ teacher, taskOptions = {} }: TaskInputs): void {
  const { beta = 1, temperature = 1, teacherModel }: DistillOptions = taskOptions
  if (teacher === undefined) {
    throw new ConfigError({
      where: 'teacher',
      what: 'missing: the task distill learns from another model',
      hint: "Give a model, or the address of a server with OpenAI's API up to /v1, as `teacher`",
    })
  }
  if (!('url' in teacher)) {
    causalLm.check(teacher)
    if (teacherModel === undefined) return
    throw new ConfigError({ where: 'teacherModel', what: 'only if the teacher is a server' })
  }
  if (beta !== 1) throw serverOnly('beta', beta)
  if (temperature !== 1) throw serverOnly('temperature', temperature)
  if (teacherModel !== undefined) return
  throw new ConfigError({ where: 'teacherModel', what: 'missing: the name of the model at the server that teaches' })
}

function serverOnly(where: string, got: number): ConfigError {
  return new ConfigError({
    where,
    what: 'a server tells the probability of each token at temperature 1, not its whole distribution',
    expected: '1 with a server as teacher, or a model as `teacher`',
    got: String(got),
  })
}
