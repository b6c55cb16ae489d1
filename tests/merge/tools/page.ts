// The script of browser.slow.test.ts in the page.

import { type JobFiles, runJob } from './job.js'

async function run() {
  const list = (await (await fetch('/files.json')).json()) as [folder: keyof JobFiles, file: string][]
  const files: JobFiles = { first: {}, second: {}, dora: {}, llama: {} }
  for (const [folder, file] of list) {
    files[folder][file] = new Uint8Array(await (await fetch(`/${folder}/${file}`)).arrayBuffer())
  }
  return runJob(files)
}

const result = await run().catch((error: Error) => ({ failed: error.stack ?? String(error) }))
await fetch('/result', { method: 'POST', body: JSON.stringify(result) })
