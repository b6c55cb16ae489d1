// Stored chat completions: requests with `store: true`, their answers, and files of records made of them.

import { seconds } from '../../adapters.js'
import type { Fields } from '../../fields.js'
import type { Caller } from '../../keys.js'
import type { Call } from '../../route.js'
import { pageOfRows } from '../../store/pages.js'
import { addToSum, removeLabels, requireRow, type Store, setLabels, sumOf } from '../../store/store.js'
import type { Row, Rows } from '../../store/tables.js'
import { pageOf } from '../lists.js'

type Metadata = Readonly<Record<string, string>>

interface Message {
  readonly role: string
  readonly content?: unknown
}

/** A chat before it is a row. */
export interface Chat {
  readonly id: string
  readonly owner: string
  readonly created_at: number
  readonly messages: readonly Message[]
  readonly tools?: readonly unknown[] | undefined
  /** The answer as it was sent. */
  readonly answer: { readonly id: string; readonly model: string; readonly choices: readonly { message: Message }[] }
  readonly metadata: Metadata
}

export interface StoredLimits {
  /** Stored chats of one owner. */
  readonly maxStored: number
  /** Bytes of one owner's stored chats. */
  readonly maxStoredBytes: number
  /** Seconds that a chat stays at most. */
  readonly maxAge: number
}

/** Which completions become records, and for which method. */
export interface StoredChoice {
  readonly metadata?: Metadata | undefined
  readonly method?: 'supervised' | 'kto' | undefined
}

/** Rows that are deleted or read at a time, so that others have their turn in between. */
const BATCH = 200

export class Completions {
  constructor(
    private readonly store: Store,
    private readonly limits: StoredLimits,
  ) {}

  /** Deletes what is too old. */
  async sweep(): Promise<void> {
    const oldest = this.#oldest()
    for (let left = BATCH; oldest > 0 && left === BATCH; ) {
      left = await this.store.write(async (rows) => {
        const old = rows.selectFrom('chats').selectAll().where('created_at', '<', oldest)
        return removeChats(rows, await old.orderBy('created_at').limit(BATCH).execute())
      })
    }
  }

  #oldest(): number {
    return seconds() - this.limits.maxAge
  }

  keep({ fields, caller }: Call, answer: object): Promise<void> {
    const { messages, tools, metadata = {} } = fields as Fields & Pick<Chat, 'messages' | 'tools' | 'metadata'>
    const sent = answer as Chat['answer']
    const chat = { id: sent.id, owner: caller.name, created_at: seconds(), messages, tools, metadata, answer: sent }
    return this.store.write(async (rows) => {
      await insertChat(rows, chat)
      let { count, bytes } = await sumOf(rows, caller.name, 'chats')
      while (count > this.limits.maxStored || bytes > this.limits.maxStoredBytes) {
        const [oldest] = await rows
          .selectFrom('chats')
          .selectAll()
          .where('owner', '=', caller.name)
          .orderBy('seq')
          .limit(1)
          .execute()
        if (oldest === undefined) break
        await removeChats(rows, [oldest])
        count--
        bytes -= oldest.bytes
      }
    })
  }

  async list({ request, caller }: Call): Promise<object> {
    const from = this.store.rows.selectFrom('chats').selectAll()
    const own = caller.isAdmin ? from : from.where('owner', '=', caller.name)
    const model = new URL(request.url).searchParams.get('model')
    const labels = { kind: 'chats', caller, model } as const
    const first = await this.#first()
    return pageOfRows(this.store, { request, from: own, labels, first, isNewestFirst: false }, wire)
  }

  /** The place of the first chat that is not too old. */
  async #first(): Promise<number> {
    const oldest = this.#oldest()
    if (oldest === Number.NEGATIVE_INFINITY) return 0
    const young = this.store.rows.selectFrom('chats').select('seq').where('created_at', '>=', oldest)
    const [found] = await young.orderBy('created_at').orderBy('seq').limit(1).execute()
    return found?.seq ?? Number.MAX_SAFE_INTEGER
  }

  async #find({ id, caller }: Pick<Call, 'id' | 'caller'>, rows = this.store.rows): Promise<Row<'chats'>> {
    const [found] = await rows.selectFrom('chats').selectAll().where('id', '=', id).execute()
    const isOld = found !== undefined && found.created_at < this.#oldest()
    return requireRow(isOld ? undefined : found, caller, 'stored completion', id)
  }

  async get(call: Call): Promise<object> {
    return wire(await this.#find(call))
  }

  async messages({ id, request, caller }: Call): Promise<object> {
    const messages = JSON.parse((await this.#find({ id, caller })).messages) as Message[]
    const all = messages.map(({ role, content = null, ...rest }, i) => {
      const isParts = Array.isArray(content)
      const shown = { content: isParts ? null : content, content_parts: isParts ? content : null }
      return { id: `${id}-${i}`, role, refusal: null, ...shown, ...rest }
    })
    return pageOf(all, request, { isNewestFirst: false })
  }

  update(call: Call): Promise<object> {
    const metadata = (call.fields.metadata as Metadata | undefined) ?? {}
    return this.store.write(async (rows) => {
      const chat = await this.#find(call, rows)
      const text = JSON.stringify(metadata)
      const more = Buffer.byteLength(text) - Buffer.byteLength(chat.metadata)
      const changed = { metadata: text, bytes: chat.bytes + more }
      await rows.updateTable('chats').set(changed).where('seq', '=', chat.seq).execute()
      await addToSum(rows, chat.owner, 'chats', 0, more)
      await setLabels(rows, 'chats', chat, metadata, chat.model)
      return wire({ ...chat, ...changed })
    })
  }

  remove(call: Call): Promise<object> {
    return this.store.write(async (rows) => {
      await removeChats(rows, [await this.#find(call, rows)])
      return { id: call.id, object: 'chat.completion.deleted', deleted: true }
    })
  }

  /** Records as lines of JSON. For `kto`, answers need a rating, which says whether they are wanted. */
  async rows(caller: Caller, { metadata = {}, method = 'supervised' }: StoredChoice): Promise<string> {
    const wanted = Object.entries(metadata)
    let text = ''
    let last = (await this.#first()) - 1
    for (;;) {
      const from = this.store.rows.selectFrom('chats').selectAll().where('seq', '>', last)
      const own = caller.isAdmin ? from : from.where('owner', '=', caller.name)
      const chats = await own.orderBy('seq').limit(BATCH).execute()
      for (const chat of chats) {
        const has = JSON.parse(chat.metadata) as Metadata
        if (wanted.every(([name, value]) => has[name] === value)) text += recordOf(chat, has.rating, method)
      }
      if (chats.length < BATCH) return text
      last = chats.at(-1)!.seq
    }
  }
}

function recordOf(chat: Row<'chats'>, rating: string | undefined, method: 'supervised' | 'kto'): string {
  if (method === 'kto' && rating !== 'good' && rating !== 'bad') return ''
  const { role, content, ...rest } = (JSON.parse(chat.answer) as Chat['answer']).choices[0].message
  const [messages, tools] = [JSON.parse(chat.messages), chat.tools === null ? undefined : JSON.parse(chat.tools)]
  // Records need no fields without a value, such as `refusal: null`.
  const calls = Object.entries(rest).filter(([, value]) => value !== null && value !== undefined)
  const said = { role, content: content ?? '', ...Object.fromEntries(calls) }
  const record =
    method === 'kto'
      ? { prompt: messages, completion: [said], label: rating === 'good', tools }
      : { messages: [...messages, said], tools }
  return `${JSON.stringify(record)}\n`
}

export async function insertChat(rows: Rows, { id, owner, created_at, ...chat }: Chat): Promise<void> {
  const [messages, answer, metadata] = [chat.messages, chat.answer, chat.metadata].map((part) => JSON.stringify(part))
  const tools = chat.tools === undefined ? null : JSON.stringify(chat.tools)
  const bytes = [messages, answer, metadata, tools ?? ''].reduce((sum, text) => sum + Buffer.byteLength(text), 0)
  const { model } = chat.answer
  const row = { id, owner, created_at, model, bytes, messages, tools, answer, metadata }
  const { seq } = await rows.insertInto('chats').values(row).returning('seq').executeTakeFirstOrThrow()
  await setLabels(rows, 'chats', { seq, owner }, chat.metadata, model)
  await addToSum(rows, owner, 'chats', 1, bytes)
}

/** Returns how many chats were deleted. */
async function removeChats(rows: Rows, chats: readonly Row<'chats'>[]): Promise<number> {
  if (chats.length === 0) return 0
  const seqs = chats.map(({ seq }) => seq)
  await rows.deleteFrom('chats').where('seq', 'in', seqs).execute()
  await removeLabels(rows, 'chats', seqs)
  for (const { owner, bytes } of chats) await addToSum(rows, owner, 'chats', -1, -bytes)
  return chats.length
}

const wire = ({ answer, metadata }: Row<'chats'>) => ({ ...JSON.parse(answer), metadata: JSON.parse(metadata) })
