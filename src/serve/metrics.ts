// Counts for Prometheus, with vLLM's names. They mean what the Gateway API Inference Extension's protocol of model
// servers asks for, so that it can choose a replica.

const BOUNDS = [0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60]

class Histogram {
  readonly #counts = new Array<number>(BOUNDS.length + 1).fill(0)
  #sum = 0

  add(seconds: number): void {
    const place = BOUNDS.findIndex((bound) => seconds <= bound)
    this.#counts[place < 0 ? BOUNDS.length : place]++
    this.#sum += seconds
  }

  lines(name: string): string[] {
    let total = 0
    const buckets = this.#counts.map((count, i) => {
      total += count
      return `${name}_bucket{le="${BOUNDS[i] ?? '+Inf'}"} ${total}`
    })
    return [`# TYPE ${name} histogram`, ...buckets, `${name}_sum ${this.#sum}`, `${name}_count ${total}`]
  }
}

/** Tokens of a block: caches here have no blocks, so the size that vLLM takes stands in. */
const BLOCK = 16

export interface ServerState {
  readonly running: number
  readonly waiting: number
  /** Tokens in the caches of running texts, and the most there can be. */
  readonly tokens: number
  readonly mostTokens: number
  readonly adapters: readonly string[]
  readonly maxAdapters: number
  /** Returns whether the metrics may name an adapter to this reader. */
  shows(name: string): boolean
}

export class Metrics {
  /** Seconds to the first token, and from each to the next. */
  readonly first = new Histogram()
  readonly between = new Histogram()
  readonly #requests = new Map<string, number>()
  readonly #waiting = new Map<string, number>()
  readonly #tokens = { prompt: 0, cached: 0, written: 0 }
  #changedAt = 0

  tokens(prompt: number, cached: number, written: number): void {
    this.#tokens.prompt += prompt
    this.#tokens.cached += cached
    this.#tokens.written += written
  }

  answered(route: string, status: number): void {
    const labels = `route="${route}",status="${status}"`
    this.#requests.set(labels, (this.#requests.get(labels) ?? 0) + 1)
  }

  /** A request that has this adapter begins or ends to wait. */
  waits(name: string, change: 1 | -1): void {
    const count = (this.#waiting.get(name) ?? 0) + change
    if (count > 0) this.#waiting.set(name, count)
    else this.#waiting.delete(name)
    this.#changedAt = Date.now() / 1000
  }

  /** Adapters for which requests wait. */
  get waiting(): readonly string[] {
    return [...this.#waiting.keys()]
  }

  text({ running, waiting, tokens, mostTokens, adapters, maxAdapters, shows }: ServerState): string {
    const list = (names: Iterable<string>) =>
      [...names]
        .filter(shows)
        .join(',')
        .replace(/["\\\n]/g, '_')
    const ofAdapters = `max_lora="${maxAdapters}",running_lora_adapters="${list(adapters)}",waiting_lora_adapters="${list(this.#waiting.keys())}"`
    const metric = (type: 'gauge' | 'counter', name: string, value: number, labels = '') => {
      return [`# TYPE ${name} ${type}`, `${name}${labels && `{${labels}}`} ${value}`]
    }
    return `${[
      ...metric('gauge', 'vllm:num_requests_running', running),
      ...metric('gauge', 'vllm:num_requests_waiting', waiting),
      ...metric('gauge', 'vllm:kv_cache_usage_perc', mostTokens === 0 ? 0 : Math.min(1, tokens / mostTokens)),
      ...metric(
        'gauge',
        'vllm:cache_config_info',
        1,
        `block_size="${BLOCK}",num_gpu_blocks="${Math.floor(mostTokens / BLOCK)}"`,
      ),
      ...metric('gauge', 'vllm:lora_requests_info', this.#changedAt, ofAdapters),
      ...metric('counter', 'vllm:prompt_tokens_total', this.#tokens.prompt),
      ...metric('counter', 'vllm:generation_tokens_total', this.#tokens.written),
      ...metric('counter', 'vllm:prefix_cache_queries_total', this.#tokens.prompt),
      ...metric('counter', 'vllm:prefix_cache_hits_total', this.#tokens.cached),
      ...this.first.lines('vllm:time_to_first_token_seconds'),
      ...this.between.lines('vllm:inter_token_latency_seconds'),
      '# TYPE lowrank:requests_total counter',
      ...[...this.#requests].map(([labels, count]) => `lowrank:requests_total{${labels}} ${count}`),
    ].join('\n')}\n`
  }
}
