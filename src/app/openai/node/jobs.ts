// The jobs of a folder, with the prompts that their files and stored chats have.

import { jobsIn, safeName } from '../plan.js'
import { lastUserText, type Origin, type Prompt, promptOfRow, type Request, trafficOf } from '../prompts.js'
import type { Item, Job } from '../provider.js'
import type { Folder } from './folder.js'
import { RECORDED, type Recorded } from './recorded.js'

export interface JobPrompts {
  readonly job: Job
  /** The prompts of the validation file, of stored chats with the job's model, and of the training file. */
  readonly prompts: Readonly<Record<Origin, readonly Prompt[]>>
}

/** The jobs that made a model, the ones whose model ends first first. */
export async function readJobs(folder: Folder): Promise<JobPrompts[]> {
  const { provider } = folder
  const lists = await folder.lists()
  const found = jobsIn(provider, lists)
  const places = Object.keys(folder.manifest.files)
  const promptsIn = async (origin: Origin, id: string | undefined, job: Job) => {
    const place = id && places.find((name) => name.startsWith(`files/${safeName(id)}.`))
    const rows: Item[] = place ? await folder.lines(place) : []
    return rows.flatMap((row, i) => promptOfRow(row, origin, `${place}, line ${i + 1}`, job) ?? [])
  }
  const recorded = (await folder.lines(RECORDED)) as unknown as Recorded[]
  const served = recorded.flatMap((line) => (line.request === undefined ? [] : [{ ...line, request: line.request }]))
  const jobs: JobPrompts[] = []
  for (const { job } of found.sort(({ end: a = '9999' }, { end: b = '9999' }) => a.localeCompare(b))) {
    const prompts = {
      'held-out': await promptsIn('held-out', job.validationFile, job),
      traffic: [
        ...trafficOf(provider, lists, job.model),
        ...served.filter(({ model }) => model === job.model).map(promptOfServed),
      ],
      training: await promptsIn('training', job.trainingFile, job),
    }
    jobs.push({ job, prompts })
  }
  return jobs
}

/** A chat that came through the server. */
function promptOfServed({ key, request, answer, where }: Recorded & { readonly request: Request }): Prompt {
  const askedAt = Date.parse(where) / 1000
  return { origin: 'traffic', where: `${RECORDED}, ${key}`, request, wanted: answer, row: {}, askedAt }
}

/** Chats after the training whose question is in no training file, so that no model has seen them. */
export function unseenTraffic({ job, prompts: { traffic, training } }: JobPrompts): Prompt[] {
  const seen = new Set(training.map(({ request }) => lastUserText(request)))
  const split = job.finishedAt ?? 0
  return traffic.filter(({ request, askedAt = 0 }) => askedAt > split && !seen.has(lastUserText(request)))
}
