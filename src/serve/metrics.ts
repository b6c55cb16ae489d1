// Counts for Prometheus, with vLLM's names, so that the Gateway API Inference Extension can route to replicas.

import type { Gate } from './gate.js'

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

export class Metrics {
  /** Seconds to the first token, and from each to the next. */
  readonly first = new Histogram()
  readonly between = new Histogram()
  readonly #requests = new Map<string, number>()
  readonly #adapters = { running: new Map<string, number>(), waiting: new Map<string, number>() }
  #promptTokens = 0
  #newTokens = 0
  #changedAt = 0

  constructor(private readonly maxAdapters: number) {}

  tokens(prompt: number, written: number): void {
    this.#promptTokens += prompt
    this.#newTokens += written
  }

  answered(route: string, status: number): void {
    const labels = `route="${route}",status="${status}"`
    this.#requests.set(labels, (this.#requests.get(labels) ?? 0) + 1)
  }

  adapter(name: string, state: 'running' | 'waiting', change: 1 | -1): void {
    const counts = this.#adapters[state]
    const count = (counts.get(name) ?? 0) + change
    if (count > 0) counts.set(name, count)
    else counts.delete(name)
    this.#changedAt = Date.now() / 1000
  }

  text({ running, waiting }: Pick<Gate, 'running' | 'waiting'>): string {
    const list = (names: Map<string, number>) => [...names.keys()].join(',').replace(/["\\\n]/g, '_')
    const adapters = `max_lora="${this.maxAdapters}",running_lora_adapters="${list(this.#adapters.running)}",waiting_lora_adapters="${list(this.#adapters.waiting)}"`
    return `${[
      '# TYPE vllm:num_requests_running gauge',
      `vllm:num_requests_running ${running}`,
      '# TYPE vllm:num_requests_waiting gauge',
      `vllm:num_requests_waiting ${waiting.length}`,
      '# TYPE vllm:lora_requests_info gauge',
      `vllm:lora_requests_info{${adapters}} ${this.#changedAt}`,
      '# TYPE vllm:prompt_tokens_total counter',
      `vllm:prompt_tokens_total ${this.#promptTokens}`,
      '# TYPE vllm:generation_tokens_total counter',
      `vllm:generation_tokens_total ${this.#newTokens}`,
      ...this.first.lines('vllm:time_to_first_token_seconds'),
      ...this.between.lines('vllm:inter_token_latency_seconds'),
      '# TYPE lowrank:requests_total counter',
      ...[...this.#requests].map(([labels, count]) => `lowrank:requests_total{${labels}} ${count}`),
    ].join('\n')}\n`
  }
}
