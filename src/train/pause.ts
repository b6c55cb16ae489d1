// A run that is paused between two steps.

/** Comes back once the run is not paused, or is aborted. `wait` gives what the next step waits for; undefined while it need not wait. */
export async function untilFree(
  wait: (() => Promise<void> | undefined) | undefined,
  signal: AbortSignal | undefined,
): Promise<void> {
  for (let pause = wait?.(); pause !== undefined && !signal?.aborted; pause = wait?.()) {
    let end = () => {}
    const aborted = new Promise<void>((resolve) => {
      end = resolve
    })
    signal?.addEventListener('abort', end)
    await Promise.race([pause, aborted])
    signal?.removeEventListener('abort', end)
  }
}
