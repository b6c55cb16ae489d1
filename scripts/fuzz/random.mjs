// Random choices that depend only on a seed, so that an input can be made again.

/** Numbers that often reveal mistakes: ends of ranges, and sizes that do not fit in memory. */
export const EDGE_NUMBERS = [0, 1, -1, 2, 127, 255, 256, 65535, 2 ** 31 - 1, 2 ** 31, 2 ** 32, 2 ** 53, -(2 ** 31), 0.5]

export function randomFrom(text) {
  let state = 2166136261
  for (const character of text) state = Math.imul(state ^ character.codePointAt(0), 16777619)
  // mulberry32
  const next = () => {
    state = (state + 0x6d2b79f5) | 0
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state)
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32
  }
  const below = (count) => Math.floor(next() * count)
  return { next, below, pick: (list) => list[below(list.length)] }
}
