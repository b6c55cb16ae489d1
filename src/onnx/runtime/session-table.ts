// Numbers the sessions of an engine, so that a graph that is built outside of the worker can run in it.

import { StateError } from '../../core/base/errors.js'
import type { Remote } from './rpc.js'
import type { Feeds, Runtime, RuntimeSession, RuntimeTensor, SessionModel, SessionOpener } from './runtime.js'

export class SessionTable {
  readonly #sessions = new Map<number, RuntimeSession>()
  #nextId = 1

  constructor(protected readonly runtime: Runtime) {}

  runtimeName(): string {
    return this.runtime.name
  }

  async openSession(model: SessionModel, options?: Parameters<Runtime['createSession']>[1]) {
    const session = await this.runtime.createSession(model, options)
    const id = this.#nextId++
    this.#sessions.set(id, session)
    return { id, inputNames: [...session.inputNames], outputNames: [...session.outputNames] }
  }

  runSession(id: number, feeds: Feeds, outputNames?: readonly string[]): Promise<Record<string, RuntimeTensor>> {
    return this.session(id).run(feeds, outputNames)
  }

  async closeSession(id: number): Promise<void> {
    const session = this.#sessions.get(id)
    this.#sessions.delete(id)
    await session?.dispose()
  }

  async dispose(): Promise<void> {
    for (const id of [...this.#sessions.keys()]) await this.closeSession(id)
  }

  protected session(id: number): RuntimeSession {
    const session = this.#sessions.get(id)
    if (session === undefined) throw new StateError({ where: `session ${id}`, what: 'it is closed' })
    return session
  }
}

export function runtimeBehind(table: Remote<SessionTable>): SessionOpener {
  return {
    async createSession(model, options) {
      const { id, inputNames, outputNames } = await table.openSession(model, options)
      return {
        inputNames,
        outputNames,
        run: (feeds, outputNames) => table.runSession(id, feeds, outputNames),
        dispose: () => table.closeSession(id),
      }
    },
  }
}
