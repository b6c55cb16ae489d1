// Requests to the server of the page, and the events of its streams.

/** The parts of an event of `/v1/completions` or `/v1/chat/completions` that the page shows. */
export interface Event {
  readonly choices?: readonly {
    readonly text?: string
    readonly delta?: { readonly content?: string | null }
    readonly finish_reason?: string | null
  }[]
  readonly usage?: { readonly completion_tokens: number } | null
  readonly error?: { readonly message: string }
}

/** Sends a form or JSON, with the key of this tab if one was typed. Without a body it is a GET. */
export function request(path: string, body?: object, signal?: AbortSignal): Promise<Response> {
  const key = sessionStorage.getItem('key')
  const headers: Record<string, string> = key === null ? {} : { authorization: `Bearer ${key}` }
  if (body === undefined) return fetch(path, { headers })
  if (body instanceof FormData) return fetch(path, { method: 'POST', headers, body, signal })
  headers['content-type'] = 'application/json'
  return fetch(path, { method: 'POST', headers, body: JSON.stringify(body), signal })
}

/** The events of a stream, until its end. */
export async function* events(response: Response): AsyncGenerator<Event> {
  const reader = response.body!.pipeThrough(new TextDecoderStream()).getReader()
  let rest = ''
  for (;;) {
    const { value, done } = await reader.read()
    if (done) return
    const lines = (rest + value).split('\n')
    rest = lines.pop()!
    for (const line of lines) {
      if (line.startsWith('data: ') && line !== 'data: [DONE]') yield JSON.parse(line.slice('data: '.length))
    }
  }
}
