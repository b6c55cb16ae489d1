// Stored chat completions: requests with `store: true`, their answers, and files of records made of them.

import type { Fields } from '../../fields.js'
import { type Caller, SERVER } from '../../keys.js'
import type { Call } from '../../route.js'
import { pageOf } from '../lists.js'
import { birth, Store, type Stored, type StoreOptions } from './store.js'

type Metadata = Readonly<Record<string, string>>

interface Message {
  readonly role: string
  readonly content?: unknown
}

interface CompletionEntry extends Stored {
  readonly messages: readonly Message[]
  readonly tools?: readonly unknown[] | undefined
  /** The answer as it was sent. */
  readonly answer: { readonly id: string; readonly model: string; readonly choices: readonly { message: Message }[] }
  metadata: Metadata
  /** Bytes of the rest as JSON. Records of older servers have none, and get it when it is needed. */
  bytes?: number
}

export interface StoredLimits {
  /** Stored chats of one owner. */
  readonly maxStored: number
  /** Bytes of one owner's stored chats. */
  readonly maxStoredBytes: number
}

/** Which completions become records, and for which method. */
export interface StoredChoice {
  readonly metadata?: Metadata | undefined
  readonly method?: 'supervised' | 'kto' | undefined
}

export class Completions {
  private constructor(
    private readonly store: Store<CompletionEntry>,
    private readonly limits: StoredLimits,
  ) {}

  /** Opens the store. If an owner has more than the limits allow, the oldest are deleted. */
  static async open(folder: string, limits: StoredLimits, options: StoreOptions): Promise<Completions> {
    return new Completions(await Store.open<CompletionEntry>(folder, 'completions', options), limits)
  }

  sweep(): Promise<void> {
    return this.store.sweep()
  }

  async keep({ fields, caller }: Call, answer: object): Promise<void> {
    const { messages, tools, metadata = {} } = fields as Fields & CompletionEntry
    const sent = answer as CompletionEntry['answer']
    await this.store.put({ ...birth(sent.id, caller), messages, tools, metadata, answer: sent })
    const own = this.store.all().filter(({ owner }) => owner === caller.name)
    let [count, bytes] = [own.length, own.reduce((sum, entry) => sum + bytesOf(entry), 0)]
    for (const entry of own) {
      if (count <= this.limits.maxStored && bytes <= this.limits.maxStoredBytes) break
      await this.store.remove(entry)
      count--
      bytes -= bytesOf(entry)
    }
  }

  list({ request, caller }: Call): object {
    const model = new URL(request.url).searchParams.get('model')
    const found = this.store.of(caller).filter(({ answer }) => model === null || answer.model === model)
    return pageOf(found.map(wire), request, { isNewestFirst: false })
  }

  get({ id, caller }: Call): object {
    return wire(this.store.get(id, caller))
  }

  messages({ id, request, caller }: Call): object {
    const { messages } = this.store.get(id, caller)
    const all = messages.map(({ role, content = null, ...rest }, i) => {
      const isParts = Array.isArray(content)
      const shown = { content: isParts ? null : content, content_parts: isParts ? content : null }
      return { id: `${id}-${i}`, role, refusal: null, ...shown, ...rest }
    })
    return pageOf(all, request, { isNewestFirst: false })
  }

  async update({ id, fields, caller }: Call): Promise<object> {
    const entry = this.store.get(id, caller)
    delete entry.bytes
    entry.metadata = (fields.metadata as Metadata | undefined) ?? {}
    await this.store.put(entry)
    return wire(entry)
  }

  async remove({ id, caller }: Call): Promise<object> {
    await this.store.remove(this.store.get(id, caller))
    return { id, object: 'chat.completion.deleted', deleted: true }
  }

  /** Records as lines of JSON. For `kto`, answers need a rating, which says whether they are wanted. */
  rows(caller: Caller, { metadata = {}, method = 'supervised' }: StoredChoice): string {
    const fits = (entry: CompletionEntry) =>
      Object.entries(metadata).every(([name, value]) => entry.metadata[name] === value)
    const rows = this.store.of(caller).flatMap((entry): object[] => {
      const { messages, tools, answer } = entry
      const { role, content, ...rest } = answer.choices[0].message
      const { rating } = entry.metadata
      if (!fits(entry) || (method === 'kto' && rating !== 'good' && rating !== 'bad')) return []
      // Records need no fields without a value, such as `refusal: null`.
      const calls = Object.entries(rest).filter(([, value]) => value !== null && value !== undefined)
      const said = { role, content: content ?? '', ...Object.fromEntries(calls) }
      if (method === 'kto') return [{ prompt: messages, completion: [said], label: rating === 'good', tools }]
      return [{ messages: [...messages, said], tools }]
    })
    return rows.map((row) => `${JSON.stringify(row)}\n`).join('')
  }
}

function bytesOf(entry: CompletionEntry): number {
  entry.bytes ??= Buffer.byteLength(JSON.stringify(entry))
  return entry.bytes
}

const wire = ({ answer, metadata }: CompletionEntry) => ({ ...answer, metadata })

/**
 * Records of the completions that a server has stored in its folder of training, as lines of JSON.
 *
 * @param folder the folder of `lowrank serve --train`
 * @throws FileError if there is no such folder
 *
 * @example
 * import { storedRows } from 'lowrank/server'
 *
 * const rows = await storedRows('jobs', { metadata: { rating: 'good' } })
 */
export async function storedRows(folder: string, choice: StoredChoice): Promise<string> {
  const completions = await Completions.open(
    folder,
    { maxStored: 0, maxStoredBytes: 0 },
    {
      isOurs: false,
      onError: console.error,
    },
  )
  return completions.rows(SERVER, choice)
}
