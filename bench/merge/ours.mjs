// One merge in a process of its own: ours.mjs BASE ADAPTER OUT THREADS FSYNC; prints its peak memory.
const [base, adapter, out, threads, fsync] = process.argv.slice(2)
const { mergeCheckpointFiles } = await import('../../dist/merge/node/merge.js')
const report = await mergeCheckpointFiles(base, [adapter], out, { threads: Number(threads), fsync: fsync === 'fsync' })
console.log(JSON.stringify({ peakRssBytes: report.peakRssBytes }))
