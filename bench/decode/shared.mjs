// Timing and memory for all contestants.

export const PROMPT = 'The Constitution of the United States'

/** Wraps ONNX Runtime so that it adds up the milliseconds of its runs. */
export function timed(ort) {
  let inside = 0
  const module = {
    Tensor: ort.Tensor,
    env: ort.env,
    InferenceSession: {
      async create(model, options) {
        const session = await ort.InferenceSession.create(model, options)
        return {
          inputNames: session.inputNames,
          outputNames: session.outputNames,
          release: () => session.release(),
          async run(feeds, fetches) {
            const startedAt = performance.now()
            try {
              return await session.run(feeds, fetches)
            } finally {
              inside += performance.now() - startedAt
            }
          },
        }
      },
    },
  }
  return { module, inside: () => inside }
}

/** Changes the module itself so that its runs are timed, because transformers.js imports ONNX Runtime on its own. */
export function timeInPlace(ort) {
  let inside = 0
  const { create } = ort.InferenceSession
  ort.InferenceSession.create = async (...args) => {
    const session = await create.apply(ort.InferenceSession, args)
    const run = session.run.bind(session)
    session.run = async (...feeds) => {
      const startedAt = performance.now()
      try {
        return await run(...feeds)
      } finally {
        inside += performance.now() - startedAt
      }
    }
    return session
  }
  return () => inside
}

/**
 * Measures the seconds of a piece of work, on the clock and as processor time of all threads. A busy machine changes
 * the latter less.
 */
export async function measured(work) {
  const [startedAt, cpu] = [performance.now(), process.cpuUsage()]
  const result = await work()
  const { user, system } = process.cpuUsage(cpu)
  return { result, seconds: (performance.now() - startedAt) / 1000, cpuSeconds: (user + system) / 1e6 }
}
