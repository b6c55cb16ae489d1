// The ledger of a folder: what requests may cost is written, and on the disk, before they are sent. What an answer did
// cost takes the place of it. A request whose answer never came keeps its reservation, since it may have been billed.

import { ConfigError } from '../../../core/base/errors.js'
import type { Folder } from './folder.js'

const LEDGER = 'ledger.jsonl'

interface Entry {
  readonly id: string
  /** The most that it can cost, in dollars. */
  readonly reserved?: number
  /** What it did cost, in dollars. */
  readonly cost?: number
  readonly at: string
}

export class Ledger {
  readonly #dollars = new Map<string, number>()
  readonly #open = new Set<string>()

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
    for (const { id, reserved, cost } of (await folder.lines(LEDGER)) as unknown as Entry[]) {
      ledger.#dollars.set(id, cost ?? reserved ?? 0)
      if (cost === undefined) ledger.#open.add(id)
      else ledger.#open.delete(id)
    }
    return ledger
  }

  get spent(): number {
    return [...this.#dollars.values()].reduce((sum, dollars) => sum + dollars, 0)
  }

  /** True if it is reserved, and nothing is known of what it did cost. */
  isOpen(id: string): boolean {
    return this.#open.has(id)
  }

  fits(dollars: number): boolean {
    return this.spent + dollars <= this.budget
  }

  /** Returns false, and reserves nothing, if the budget does not have as much. */
  async reserve(id: string, reserved: number): Promise<boolean> {
    if (!this.fits(reserved)) return false
    // It counts from now on, so that requests at the same time cannot take the same dollars.
    this.#dollars.set(id, reserved)
    this.#open.add(id)
    await this.folder.append(LEDGER, { id, reserved, at: new Date().toISOString() } satisfies Entry)
    return true
  }

  async settle(id: string, cost: number): Promise<void> {
    await this.folder.append(LEDGER, { id, cost, at: new Date().toISOString() } satisfies Entry)
    this.#dollars.set(id, cost)
    this.#open.delete(id)
  }
}
