// Files, fine-tuning jobs, stored chats and aliases, if the server trains.

import { jsonResponse } from '../bodies/pieces.js'
import type { Jobs } from '../jobs/training.js'
import type { Call } from '../route.js'
import { notTraining, type Serving } from '../serving.js'

export function ofJobs(run: (jobs: Jobs, call: Call) => object | Promise<object>) {
  return async ({ jobs }: Serving, call: Call): Promise<Response> => {
    if (jobs === undefined) throw notTraining()
    const answer = await run(jobs, call)
    return answer instanceof Response ? answer : jsonResponse(answer)
  }
}
