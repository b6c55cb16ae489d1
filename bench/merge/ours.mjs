// One merge in a process of its own: ours.mjs BASE ADAPTER OUT THREADS; prints its peak memory.
const [base, adapter, out, threads] = process.argv.slice(2)
const { merge } = await import('../../dist/node.js')
await merge({ base, adapters: adapter, out, threads: Number(threads) })
console.log(JSON.stringify({ peakRssBytes: process.resourceUsage().maxRSS * 1024 }))
