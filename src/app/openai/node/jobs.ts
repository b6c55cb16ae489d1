// The jobs of a folder, with the prompts that their files and stored chats have.

import { itemsOf, type Known, safeName } from '../plan.js'
import { lastUserText, type Prompt, promptOfRow, trafficOf } from '../prompts.js'
import type { Item, Job, Provider } from '../provider.js'
import type { Folder } from './folder.js'

export interface JobPrompts {
  readonly job: Job
  /** The place of the training file in the folder; undefined if it could not be fetched. */
  readonly trainingFile: string | undefined
  readonly training: readonly Prompt[]
  /** Of the validation file. */
  readonly heldOut: readonly Prompt[]
  /** Stored chats of the job's model. */
  readonly traffic: readonly Prompt[]
}

/** The jobs that made a model, the ones whose model ends first first. */
export async function readJobs(folder: Folder, provider: Provider, lists: Known['lists']): Promise<JobPrompts[]> {
  const ends = new Map(itemsOf(provider, 'models', lists).map(({ item }) => [item.id, item.shutdown_date] as const))
  const found = itemsOf(provider, provider.jobs, lists).flatMap(({ item }) => provider.jobOf(item) ?? [])
  const endOf = ({ model, base }: Job) => String(ends.get(model) ?? ends.get(base) ?? '9999')
  const jobs: JobPrompts[] = []
  for (const job of found.sort((a, b) => endOf(a).localeCompare(endOf(b)))) {
    const [trainingFile, validationFile] = [job.trainingFile, job.validationFile].map((id) => placeOfFile(folder, id))
    jobs.push({
      ...{ job, trainingFile },
      training: await promptsIn(folder, trainingFile, 'training', job),
      heldOut: await promptsIn(folder, validationFile, 'held-out', job),
      traffic: trafficOf(provider, lists, job.model),
    })
  }
  return jobs
}

function placeOfFile({ manifest }: Folder, id: string | undefined): string | undefined {
  if (id === undefined) return undefined
  return Object.keys(manifest.files).find((place) => place.startsWith(`files/${safeName(id)}.`))
}

async function promptsIn(folder: Folder, place: string | undefined, origin: 'training' | 'held-out', job: Job) {
  const rows: Item[] = place === undefined ? [] : await folder.lines(place)
  return rows.flatMap((row, i) => promptOfRow(row, origin, `${place}, line ${i + 1}`, job) ?? [])
}

/** Chats after the training whose question is in no training file, so that no model has seen them. */
export function unseenTraffic({ job, traffic, training }: JobPrompts): Prompt[] {
  const seen = new Set(training.map(({ request }) => lastUserText(request)))
  const split = job.finishedAt ?? 0
  return traffic.filter(({ request, askedAt = 0 }) => askedAt > split && !seen.has(lastUserText(request)))
}
