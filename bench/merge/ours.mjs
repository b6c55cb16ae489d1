// Runs one merge in this process, and prints its processor time and peak memory.
//
//     node ours.mjs DIST BASE ADAPTER OUT THREADS

import { join } from 'node:path'
import { pathToFileURL } from 'node:url'

const [dist, base, adapter, out, threads] = process.argv.slice(2)
const { merge } = await import(pathToFileURL(join(dist, 'node.js')).href)
await merge({ base, adapters: adapter, out, threads: Number(threads) })
const { maxRSS, userCPUTime, systemCPUTime } = process.resourceUsage()
console.log(JSON.stringify({ peakRssBytes: maxRSS * 1024, processorSeconds: (userCPUTime + systemCPUTime) / 1e6 }))
