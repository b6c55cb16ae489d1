// Writes the texts of a request, in any form: waits for a place, runs the session, and gives the form what it writes.

import { AnswerReader, callFormNamed, functionsOf } from '../../api/parts/entry.js'
import type { Fields } from '../fields.js'
import type { TextForm, TextRequest } from '../forms/form.js'
import { structureOf } from '../forms/tool-prompt.js'
import { wireOf } from '../forms/wire.js'
import { type Events, eventStream } from '../http.js'
import { checkPrompts } from '../lengths.js'
import type { Call } from '../route.js'
import { notTraining, type Serving } from '../serving.js'

export function textsIn(form: TextForm) {
  return async (serving: Serving, call: Call): Promise<Response> => {
    const { request, fields } = call
    if (fields.store === true && serving.jobs === undefined) throw notTraining('store: ')
    const asked = form.read(fields, serving.maxTokens)
    await checkPrompts(serving.session.model, asked)
    if (!asked.isStream) return Response.json(await answer(serving, call, form, asked, request.signal))
    return eventStream(
      async (events, ended) => {
        call.done = answer(serving, call, form, asked, ended, events)
        await call.done
      },
      wireOf(request),
      (error, left) => {
        const told = serving.told(error, AbortSignal.any([request.signal, left]))
        call.entry.status = told.status
        return told
      },
      request.signal,
    )
  }
}

/** Sends the events while the texts grow, and returns the whole answer. */
async function answer(
  serving: Serving,
  call: Call,
  form: TextForm,
  asked: TextRequest,
  left: AbortSignal,
  events?: Events,
): Promise<object> {
  const { session, metrics, jobs } = serving
  const { fields, entry, startedAt, caller } = call
  const { n, tools } = asked
  const { adapter, signal, leave } = await serving.enter(call, left)
  try {
    const { images, ...options } = asked.options
    const prompts = asked.prompts.flatMap((prompt) => Array.from({ length: n }, () => prompt))
    const { chatTemplate } = serving.options
    const written = options.tools && callFormNamed(await session.toolForm({ adapter, chatTemplate }))
    const structure = written && structureOf(asked, written)
    const functions = functionsOf(options.tools ?? [])
    const most = tools.isParallel ? undefined : 1
    const rows = prompts.map(() => ({ reader: new AnswerReader(written, functions, most), scored: 0 }))
    const readers = rows.map(({ reader }) => reader)
    const writer = form.write(asked, {
      ...{ session, fields, adapter, readers, model: serving.modelOf(call) },
      send: events?.send,
    })
    let lastAt: number | undefined
    const results = await session.generate(prompts, {
      ...options,
      images: images && (prompts.map(() => images) as never),
      ...{ adapter, chatTemplate, structure, cacheScope: caller.key, signal },
      on: {
        text(piece, index, scores) {
          const now = performance.now()
          if (lastAt === undefined) metrics.first.add((now - startedAt) / 1000)
          else metrics.between.add((now - lastAt) / 1000)
          entry.firstTokenMs ??= now - startedAt
          lastAt = now
          rows[index].scored += scores.length
          writer.add(index, rows[index].reader.read(piece), scores)
        },
      },
    })
    for (const [i, result] of results.entries()) {
      // The last piece may be large.
      await events?.room()
      const { reader, scored } = rows[i]
      writer.add(i, reader.end(result.text), result.logprobs?.slice(scored) ?? [])
      writer.end(i, result)
    }
    const ofPrompts = results.filter((_, i) => i % n === 0)
    const usage = {
      promptTokens: ofPrompts.reduce((sum, { promptTokens }) => sum + promptTokens, 0),
      cachedTokens: ofPrompts.reduce((sum, { cachedTokens }) => sum + cachedTokens, 0),
      newTokens: results.reduce((sum, { tokenIds }) => sum + tokenIds.length, 0),
    }
    const body = await writer.body(results, usage)
    metrics.tokens(usage.promptTokens, usage.cachedTokens, usage.newTokens)
    Object.assign(entry, usage)
    if (fields.store === true) await jobs!.completions.keep(call, body)
    if (entry.route === '/v1/chat/completions') record(serving, call, body)
    return body
  } finally {
    leave()
  }
}

/** The caller does not wait for it. */
function record(serving: Serving, call: Call, answer: object): void {
  const exchange = { model: serving.modelOf(call), request: call.fields, ms: performance.now() - call.startedAt }
  const recording = async () => serving.options.record?.({ ...exchange, answer: answer as Fields })
  recording().catch((error) => serving.told(error))
}

/** The tokens of a chat as the model reads them. */
export async function encodeChat(serving: Serving, { fields, caller }: Call, read: TextForm['read']) {
  const { session, registry, maxTokens } = serving
  const asked = read(fields, maxTokens)
  await checkPrompts(session.model, asked)
  const { adapter, end } = await registry.choose(fields, caller)
  try {
    const { tools, chatTemplateArgs } = asked.options
    const { chatTemplate } = serving.options
    return await session.encode(asked.prompts[0], { adapter, chatTemplate, chatTemplateArgs, tools })
  } finally {
    end()
  }
}
