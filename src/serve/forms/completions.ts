// /v1/completions: texts or token ids are continued, and come back with their prompts if `echo` asks for it.

import type { TokenPrompt } from '../../api/index.js'
import type { Fields } from '../fields.js'
import { HttpError, invalid } from '../http.js'
import { type ChoiceForm, choicesWriter, type Echo } from './choices.js'
import {
  type Asked,
  finishReason,
  formatOf,
  sharedOptions,
  streaming,
  type TextForm,
  type TextRequest,
  TOKENS_OF_JSON,
} from './form.js'

const COMPLETION_TOKENS = 16

function completionRequest(fields: Fields, maxTokens: number): TextRequest {
  const prompt = fields.prompt as string | readonly string[] | readonly number[] | readonly (readonly number[])[]
  const isIds = Array.isArray(prompt) && typeof prompt[0] === 'number'
  const list = (typeof prompt === 'string' || isIds ? [prompt] : prompt) as readonly (string | readonly number[])[]
  if (list.length === 0) throw invalid('prompt', 'an empty list')
  const scores = fields.logprobs as number | undefined
  const isEcho = fields.echo === true
  const shared = streaming(fields)
  const format = formatOf(fields)
  if (isEcho && (shared.isStream || shared.n > 1)) {
    throw new HttpError(400, 'echo works with one whole answer, not with stream or n', { param: 'echo' })
  }
  if (fields.max_tokens === 0 && !isEcho) throw invalid('max_tokens', '0 works with echo only')
  return {
    prompts: list.map((text) => (typeof text === 'string' ? text : { ids: text })),
    tools: { choice: 'none', isParallel: true },
    format,
    ...shared,
    options: {
      ...sharedOptions(fields, maxTokens, fields.max_tokens, format ? TOKENS_OF_JSON : COMPLETION_TOKENS),
      logprobs: scores,
    },
  }
}

export const COMPLETIONS: TextForm = {
  read: completionRequest,
  write(request, asked) {
    const { logprobs, max_tokens, echo } = asked.fields
    const form = completionForm(logprobs !== undefined, max_tokens === 0)
    const echoes = () => Promise.all(request.prompts.map((prompt) => echoOf(prompt as Text, asked)))
    return choicesWriter(form, request, asked, echo === true ? echoes : undefined)
  },
}

function completionForm(hasScores: boolean, isPromptAlone: boolean): ChoiceForm {
  return {
    object: 'text_completion',
    chunkObject: 'text_completion',
    idPrefix: 'cmpl-',
    choice(index, result, _, echo) {
      const written = isPromptAlone ? [] : (result.logprobs ?? [])
      const text = `${echo?.text ?? ''}${isPromptAlone ? '' : result.text}`
      const scores = [...(echo?.scores ?? []), ...written]
      return { index, text, logprobs: hasScores ? completionScores(scores) : null, finish_reason: finishReason(result) }
    },
    pieces(index, parts, scores) {
      const text = parts.map((part) => (part.type === 'text' ? part.text : '')).join('')
      if (text === '' && !(hasScores && scores.length > 0)) return []
      return [{ index, text, logprobs: hasScores ? completionScores(scores) : null, finish_reason: null }]
    },
    end: (index, result) => ({ index, text: '', logprobs: null, finish_reason: finishReason(result) }),
  }
}

/** Scores in the form of /v1/completions: lists side by side. The first token of a prompt has no score. */
function completionScores(scores: Echo['scores']) {
  let offset = 0
  return {
    tokens: scores.map(({ text }) => text),
    token_logprobs: scores.map(({ logprob }) => logprob),
    top_logprobs: scores.map(({ logprob, top }) => {
      return logprob === null ? null : Object.fromEntries(top.map((likely) => [likely.text, likely.logprob]))
    }),
    text_offset: scores.map(({ text }) => {
      const start = offset
      offset += text.length
      return start
    }),
  }
}

/** This form takes no chats. */
type Text = string | TokenPrompt

async function echoOf(prompt: Text, { session, adapter, fields: { logprobs } }: Asked): Promise<Echo> {
  const text =
    typeof prompt === 'string' ? prompt : session.model.tokenizer!.decode([...prompt.ids], { specialTokens: true })
  if (logprobs === undefined) return { text, scores: [] }
  return { text, scores: await session.score(prompt, { adapter, logprobs: logprobs as number }) }
}
