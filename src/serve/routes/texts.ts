// Writes the texts of a request, in any form: waits for a place, runs the session, and gives the form what it writes.

import type { GenerateResult, Prompt } from '../../api/index.js'
import { AnswerReader, callFormNamed, fitsSchema, functionsOf, heldSchema } from '../../api/parts/entry.js'
import { jsonIn } from '../../core/base/options.js'
import type { Fields } from '../fields.js'
import { CHAT } from '../forms/chat.js'
import type { TextForm, TextRequest } from '../forms/form.js'
import { structureOf } from '../forms/tool-prompt.js'
import { wireOf } from '../forms/wire.js'
import { type Events, eventStream } from '../http.js'
import { checkPrompts } from '../lengths.js'
import type { Call } from '../route.js'
import { notTraining, type Serving } from '../serving.js'

/** A header of answers, and a field of the last chunk of streams. */
const NOT_STORED = 'x-lowrank-stored'

/** What a route does besides writing texts. */
interface Extras {
  /** Refuses a request, or leaves a part of it out, before its length is checked. */
  shorten?(serving: Serving, call: Call, asked: TextRequest): Promise<TextRequest>
  keep?(serving: Serving, call: Call, answer: object, events: Events | undefined): Promise<void>
}

export function textsIn(form: TextForm, { shorten, keep }: Extras = {}) {
  return async (serving: Serving, call: Call): Promise<Response> => {
    const { request, fields } = call
    const read = form.read(fields, serving.maxTokens)
    const asked = (await shorten?.(serving, call, read)) ?? read
    await checkPrompts(serving.session.model, asked)
    const write = async (left: AbortSignal, events?: Events) => {
      const body = await answer(serving, call, form, asked, left, events)
      await keep?.(serving, call, body, events)
      return body
    }
    if (!asked.isStream) {
      const body = await write(request.signal)
      const headers = new Headers()
      if (call.isLost) headers.set(NOT_STORED, 'no')
      if (call.isBroken) headers.set('x-lowrank-schema', 'broken')
      return Response.json(body, { headers })
    }
    return eventStream(
      async (events, ended) => {
        call.done = write(ended, events)
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

/** Chats are stored if the caller asks for it. */
export const chats = textsIn(CHAT, {
  async shorten({ jobs }, { fields }, asked) {
    if (fields.store === true && jobs === undefined) throw notTraining('store: ')
    return asked
  },
  async keep(serving, call, answer, events) {
    if (call.fields.store === true) await keepChat(serving, call, answer, events)
  },
})

/**
 * Sends the events while the texts grow, and returns the whole answer. A text that breaks a schema by what texts are
 * not kept to is drawn once more, if its words have not been sent.
 */
async function answer(
  serving: Serving,
  call: Call,
  form: TextForm,
  asked: TextRequest,
  left: AbortSignal,
  events?: Events,
): Promise<object> {
  const { session, metrics } = serving
  const { fields, entry, startedAt, caller } = call
  const { n, tools, format } = asked
  const held = format && heldSchema(format.schema, 'schema', format.isStrict ? 'all' : 'known')
  const isChecked = held !== undefined && held.lost.length > 0
  const breaks = ({ text }: GenerateResult) => isChecked && !fitsSchema(jsonIn(text), format!.schema)
  const isDrawnAgain = isChecked && events === undefined
  /** The last event says if the schema is broken. */
  let last: object | undefined
  const sendBefore = (event: object) => {
    if (last !== undefined) events?.send(last)
    last = event
  }
  const { adapter, signal, leave } = await serving.enter(call, left)
  try {
    const { images, ...options } = asked.options
    const prompts = asked.prompts.flatMap((prompt) => Array.from({ length: n }, () => prompt))
    const { chatTemplate } = serving.options
    const asking = { adapter, chatTemplate }
    const known = Array.isArray(prompts[0]) ? await session.knownTools(asking) : undefined
    const calling = options.tools || known ? callFormNamed(await session.toolForm(asking)) : undefined
    const structure = calling && structureOf(asked, calling, known)
    const written = options.tools && calling
    const functions = functionsOf(options.tools ?? [])
    const most = tools.isParallel ? undefined : 1
    const rows = prompts.map(() => ({ reader: new AnswerReader(written, functions, most), scored: 0 }))
    const readers = rows.map(({ reader }) => reader)
    const writer = form.write(asked, {
      ...{ session, fields, adapter, readers, model: serving.modelOf(call) },
      send: events && (isChecked ? sendBefore : events.send),
    })
    let lastAt: number | undefined
    const draw = (of: readonly Prompt[], seed = options.seed) =>
      session.generate(of, {
        ...options,
        ...{ schema: held?.schema, seed, images: images && (of.map(() => images) as never) },
        ...{ adapter, chatTemplate, structure, cacheScope: caller.key, signal },
        on: {
          text(piece, index, scores) {
            const now = performance.now()
            if (lastAt === undefined) metrics.first.add((now - startedAt) / 1000)
            else metrics.between.add((now - lastAt) / 1000)
            entry.firstTokenMs ??= now - startedAt
            lastAt = now
            if (isDrawnAgain) return
            rows[index].scored += scores.length
            writer.add(index, rows[index].reader.read(piece), scores)
          },
        },
      })
    const results = await draw(prompts)
    const counted = results.map((result, i) => ({ ...result, isFirst: i % n === 0 }))
    for (const [i, result] of results.entries()) {
      if (!isDrawnAgain || !breaks(result)) continue
      results[i] = (await draw([prompts[i]], result.seed + results.length))[0]
      counted.push({ ...results[i], isFirst: true })
    }
    for (const [i, result] of results.entries()) {
      // The last piece may be large.
      await events?.room()
      const { reader, scored } = rows[i]
      writer.add(i, reader.end(result.text), result.logprobs?.slice(scored) ?? [])
      writer.end(i, result)
    }
    const ofPrompts = counted.filter(({ isFirst }) => isFirst)
    const usage = {
      promptTokens: ofPrompts.reduce((sum, { promptTokens }) => sum + promptTokens, 0),
      cachedTokens: ofPrompts.reduce((sum, { cachedTokens }) => sum + cachedTokens, 0),
      newTokens: counted.reduce((sum, { tokenIds }) => sum + tokenIds.length, 0),
    }
    const body = await writer.body(results, usage)
    metrics.tokens(usage.promptTokens, usage.cachedTokens, usage.newTokens)
    Object.assign(entry, usage)
    if (entry.route === '/v1/chat/completions') record(serving, call, body)
    call.isBroken = results.some(breaks)
    if (last !== undefined && call.isBroken) last = { ...last, x_lowrank_schema: 'broken' }
    return body
  } finally {
    if (last !== undefined) events?.send(last)
    leave()
  }
}

/** Stores a chat. If that fails, the caller has the answer all the same, and learns that it was not stored. */
async function keepChat(serving: Serving, call: Call, body: object, events: Events | undefined): Promise<void> {
  try {
    await serving.jobs!.completions.keep(call, body)
  } catch (error) {
    serving.told(error)
    call.isLost = true
    const chunk = { ...body, object: 'chat.completion.chunk', choices: [], [NOT_STORED]: 'no' }
    events?.send(chunk)
  }
}

/** The caller does not wait for it. */
function record(serving: Serving, call: Call, answer: object): void {
  const exchange = { model: serving.modelOf(call), request: call.fields, ms: performance.now() - call.startedAt }
  const recording = async () => serving.options.record?.({ ...exchange, answer: answer as Fields })
  recording().catch((error) => serving.told(error))
}

/** The tokens of a chat as the model reads them. */
export async function encodeChat(serving: Serving, call: Call, read: TextForm['read']) {
  const asked = read(call.fields, serving.maxTokens)
  await checkPrompts(serving.session.model, asked)
  return encodeAsked(serving, call, asked)
}

export async function encodeAsked(serving: Serving, { fields, caller }: Call, asked: TextRequest) {
  const { session, registry } = serving
  const { adapter, end } = await registry.choose(fields, caller)
  try {
    const { tools, chatTemplateArgs, answerStart } = asked.options
    const { chatTemplate } = serving.options
    return await session.encode(asked.prompts[0], { adapter, chatTemplate, chatTemplateArgs, tools, answerStart })
  } finally {
    end()
  }
}
