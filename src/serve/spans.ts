// OpenTelemetry's spans: one for each request, if a program has @opentelemetry/api and a tracer.

import type { RequestEntry } from './route.js'

export type OnSpan = (entry: RequestEntry, headers: Headers) => void

interface Telemetry {
  readonly context: { active(): unknown }
  readonly propagation: { extract(context: unknown, headers: object): unknown }
  readonly trace: {
    getTracer(name: string): { startSpan(name: string, options: object, context: unknown): { end(): void } }
  }
  readonly SpanKind: { readonly SERVER: number }
}

export async function openSpans(): Promise<OnSpan | undefined> {
  // A name that bundlers and the compiler do not look for.
  const name = '@opentelemetry/api'
  const telemetry: Telemetry | undefined = await import(/* @vite-ignore */ /* webpackIgnore: true */ name).catch(
    () => undefined,
  )
  if (telemetry === undefined) return undefined
  const { trace, context, propagation, SpanKind } = telemetry
  return ({ method, route, status, model, promptTokens, newTokens, ms }, headers) => {
    const parent = propagation.extract(context.active(), Object.fromEntries(headers))
    const attributes = {
      'http.request.method': method,
      'http.route': route,
      'http.response.status_code': status,
      'gen_ai.request.model': model,
      'gen_ai.usage.input_tokens': promptTokens,
      'gen_ai.usage.output_tokens': newTokens,
    }
    const startTime = Date.now() - ms
    trace
      .getTracer('lowrank')
      .startSpan(`${method} ${route}`, { kind: SpanKind.SERVER, startTime, attributes }, parent)
      .end()
  }
}
