// Groups, compares and searches lists.

/** Groups items by key. The keys are in the order of their first items. */
export function groupBy<Item, Key>(items: Iterable<Item>, keyOf: (item: Item) => Key): Map<Key, Item[]> {
  const groups = new Map<Key, Item[]>()
  for (const item of items) {
    const key = keyOf(item)
    const group = groups.get(key)
    if (group === undefined) groups.set(key, [item])
    else group.push(item)
  }
  return groups
}

/** Returns how many elements, or characters, two lists have in common at their start. */
export function commonLength(a: ArrayLike<unknown>, b: ArrayLike<unknown>): number {
  let length = 0
  while (length < a.length && length < b.length && a[length] === b[length]) length++
  return length
}

/**
 * Returns the first index below `count` for which `holds` is true, or `count` if there is none. Searches in halves, so
 * if `holds` is true for an index, it must be true for all later ones.
 */
export function firstOf(count: number, holds: (index: number) => boolean): number {
  let [low, high] = [0, count]
  while (low < high) {
    const middle = (low + high) >> 1
    if (holds(middle)) high = middle
    else low = middle + 1
  }
  return low
}
