// What this browser offers: threads, and whether it has WebGPU.

import { byId, make } from './dom.js'

const ASKED = 'lowrank-isolation-asked'

/** Asks a service worker to isolate the page, which gives WebAssembly threads. It reloads the page once. */
export async function isolate(): Promise<void> {
  if (globalThis.crossOriginIsolated || !('serviceWorker' in navigator)) return
  try {
    await navigator.serviceWorker.register(new URL('isolate.js', document.baseURI))
    await navigator.serviceWorker.ready
  } catch {
    return
  }
  if (sessionStorage.getItem(ASKED) !== null) return
  sessionStorage.setItem(ASKED, 'yes')
  location.reload()
}

export function showMachine(): void {
  const cores = navigator.hardwareConcurrency
  const threads = globalThis.crossOriginIsolated
    ? `${cores} ${cores === 1 ? 'thread' : 'threads'}`
    : '1 thread: this page could not be isolated from other sites, and browsers then allow no more'
  const gpu =
    'gpu' in navigator ? 'WebGPU is here; this page computes with WebAssembly' : 'No WebGPU here, and none is needed'
  const chips = [threads, gpu, 'Your text stays on this machine']
  byId('machine').replaceChildren(...chips.map((text) => make('span', {}, text)))
}
