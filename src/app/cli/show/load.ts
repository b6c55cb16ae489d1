// A live line of what a server does, for a terminal.

/** Sums the values of a metric in Prometheus' text. */
function metricOf(text: string, name: string): number {
  const lines = text.matchAll(new RegExp(`^${name}(?:\\{.*\\})? (\\S+)$`, 'gm'))
  return [...lines].reduce((sum, [, value]) => sum + Number(value), 0)
}

/** Rewrites one line a second while stderr is a terminal. Returns what ends it. */
export function showLoad(metrics: () => Promise<string>): () => void {
  if (process.stderr.isTTY !== true) return () => {}
  let last: { readonly tokens: number; readonly at: number } | undefined
  const draw = async () => {
    const text = await metrics()
    const [running, waiting] = ['running', 'waiting'].map((state) => metricOf(text, `vllm:num_requests_${state}`))
    const tokens =
      metricOf(text, 'vllm:time_to_first_token_seconds_count') +
      metricOf(text, 'vllm:inter_token_latency_seconds_count')
    const now = performance.now()
    const rate = last === undefined ? 0 : (1000 * (tokens - last.tokens)) / (now - last.at)
    last = { tokens, at: now }
    // The cursor goes back to the start, so that the next message takes the line.
    process.stderr.write(`\r\x1b[K${running} running, ${waiting} waiting, ${rate.toFixed(0)} tokens/s\r`)
  }
  const timer = setInterval(() => void draw().catch(() => {}), 1000)
  return () => {
    clearInterval(timer)
    process.stderr.write('\x1b[K')
  }
}
