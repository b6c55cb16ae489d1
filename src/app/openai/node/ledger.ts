// The ledger of a folder: what requests may cost is written, and on the disk, before they are sent. What an answer did
// cost takes the place of it. A request whose answer never came keeps its reservation, since it may have been billed.

import { ConfigError } from '../../../core/base/errors.js'
import type { Folder } from './folder.js'

const LEDGER = 'ledger.jsonl'

/** A batch that was sent: its model, and the keys of its prompts. */
export interface SentBatch {
  readonly model: string
  readonly keys: readonly string[]
}

interface Entry {
  readonly id: string
  /** The most that it can cost, in dollars. */
  readonly reserved?: number
  /** What it did cost, in dollars. */
  readonly cost?: number
  readonly at: string
  readonly batch?: SentBatch | undefined
}

export class Ledger {
  readonly #dollars = new Map<string, number>()
  /** Batches whose cost is not known. */
  readonly batches = new Map<string, SentBatch>()

  private constructor(
    private readonly folder: Folder,
    private readonly budget: number,
  ) {}

  /** @param budget dollars for this folder, over all runs */
  static async open(folder: Folder, budget: number | undefined): Promise<Ledger> {
    if (budget === undefined || !(budget > 0)) {
      const hint = 'It is a limit in dollars for all that this folder has ever asked, such as 20'
      throw new ConfigError({ where: 'budget', what: 'nothing is sent without a budget', hint })
    }
    const ledger = new Ledger(folder, budget)
    for (const entry of (await folder.lines(LEDGER)) as unknown as Entry[]) ledger.#enter(entry)
    return ledger
  }

  get spent(): number {
    return [...this.#dollars.values()].reduce((sum, dollars) => sum + dollars, 0)
  }

  fits(dollars: number): boolean {
    return this.spent + dollars <= this.budget
  }

  /** Returns false, and reserves nothing, if the budget does not have as much. */
  async reserve(id: string, reserved: number, batch?: SentBatch): Promise<boolean> {
    if (!this.fits(reserved)) return false
    await this.#write({ id, reserved, batch })
    return true
  }

  settle(id: string, cost: number): Promise<void> {
    return this.#write({ id, cost })
  }

  /** It counts before it is written, so that no two requests take the same dollars. */
  async #write(entry: Omit<Entry, 'at'>): Promise<void> {
    const dated = { ...entry, at: new Date().toISOString() }
    if (entry.cost === undefined) this.#enter(dated)
    await this.folder.append(LEDGER, dated)
    this.#enter(dated)
  }

  #enter({ id, reserved = 0, cost, batch }: Entry): void {
    this.#dollars.set(id, cost ?? reserved)
    if (batch !== undefined) this.batches.set(id, batch)
    if (cost !== undefined) this.batches.delete(id)
  }
}
