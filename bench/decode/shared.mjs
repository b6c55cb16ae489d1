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
