// The models that graders name: functions, servers with an API like OpenAI's, and sessions.

import { ConfigError } from '../../../core/base/errors.js'
import { describe, hasMethods, isObject } from '../../../core/base/options.js'
import { askChat, checkAddress } from '../../../core/base/post-json.js'
import type { GraderModel, GraderServer, GraderSession, Judge } from './forms.js'

export type GraderModels = Readonly<Record<string, GraderModel>>

/** @throws ConfigError that names the grader if its model has not been given */
export function judgeOf(name: string, models: GraderModels, where: string): Judge {
  const model = modelOf(name, models, where)
  if (typeof model === 'function') return model
  if (isSession(model)) {
    return async (messages, { model: _, maxTokens, reasoningEffort: __, ...options }) => {
      const maxNewTokens = maxTokens === undefined ? undefined : { maxNewTokens: maxTokens }
      return (await model.generate(messages, { ...options, ...maxNewTokens })).text
    }
  }
  const server: GraderServer = typeof model === 'string' ? { url: model } : model
  const url = checkAddress(server.url, `${where}, the model ${name}`)
  return async (messages, { schema, temperature, topP, seed, maxTokens, reasoningEffort }) => {
    const body = {
      ...{ model: server.model ?? name, messages, temperature, seed, top_p: topP },
      ...{ max_completion_tokens: maxTokens, reasoning_effort: reasoningEffort },
      response_format: { type: 'json_schema', json_schema: { name: 'grade', strict: true, schema } },
    }
    return (await askChat(url, body, { key: server.key, who: `the model ${name} of a grader` })).text
  }
}

export function encoderOf(models: GraderModels, where: string): GraderSession {
  const model = modelOf('cosine', models, where)
  if (isSession(model)) return model
  throw new ConfigError({ where, what: 'cosine needs a session with an encoder', got: describe(model) })
}

function modelOf(name: string, models: GraderModels, where: string): GraderModel {
  const model = Object.hasOwn(models, name) ? models[name] : undefined
  const isKnown =
    ['string', 'function'].includes(typeof model) || isSession(model) || (isObject(model) && 'url' in model)
  if (isKnown) return model as GraderModel
  throw new ConfigError({
    where,
    what: `no model stands for ${name}`,
    expected: 'a function, a URL, { url, key, model } or a session in `graderModels`',
    got: model === undefined ? Object.keys(models).join(', ') || 'no models' : describe(model),
  })
}

function isSession(model: unknown): model is GraderSession {
  return hasMethods(model, 'generate', 'embed')
}
