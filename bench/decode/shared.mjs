// What contestants share.

export const PROMPT = 'The Constitution of the United States'

/** ONNX Runtime that knows how many milliseconds its runs took. */
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

/** The same for transformers.js, which imports the module itself: its sessions are timed where they run. */
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
 * What a piece of work takes: seconds on the clock, and of the processor's time in all threads, which a busy machine
 * changes less.
 */
export async function measured(work) {
  const [startedAt, cpu] = [performance.now(), process.cpuUsage()]
  const result = await work()
  const { user, system } = process.cpuUsage(cpu)
  return { result, seconds: (performance.now() - startedAt) / 1000, cpuSeconds: (user + system) / 1e6 }
}
