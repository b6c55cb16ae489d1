// Changes valid files: bytes, lines and words, or values in a tree (JSON, protobuf), whose syntax stays valid.

import { EDGE_NUMBERS } from './random.mjs'

const WORDS = [
  '',
  ' ',
  '\u0000',
  '\ufeff',
  '..',
  '/',
  '__proto__',
  'constructor',
  'null',
  '(a|a)*b',
  '{{',
  '"',
  '💥',
  'é',
]

/** @param others values from the same tree, so that its names also appear in wrong places */
function otherValue(random, value, others) {
  if (random.below(5) === 0) return random.pick([null, true, '', 0, -1, [], {}, [[]], 1e300, 'a'.repeat(5000)])
  if (random.below(3) === 0) return random.pick(others)
  if (typeof value === 'string') {
    const at = random.below(value.length + 1)
    return value.slice(0, at) + random.pick(WORDS) + value.slice(at + random.below(3))
  }
  if (typeof value === 'number') return random.pick([...EDGE_NUMBERS, value + 1, -value, value * 2])
  if (typeof value === 'bigint') return BigInt(Math.trunc(random.pick(EDGE_NUMBERS))) + BigInt(random.below(3))
  if (typeof value === 'boolean') return !value
  return random.pick(others)
}

/** Lists the places of a tree. Takes only some entries of long lists. */
function placesOf(tree, random, places = []) {
  if (tree === null || typeof tree !== 'object' || ArrayBuffer.isView(tree)) return places
  const keys = Object.keys(tree)
  const start = keys.length > 400 ? random.below(keys.length - 400) : 0
  for (const key of keys.slice(start, start + 400)) {
    if (key.startsWith('$')) continue
    places.push({ holder: tree, key })
    placesOf(tree[key], random, places)
  }
  return places
}

/** Changes one to four values in place. With `isTyped` values keep their type, as protobuf needs it. */
export function mutateTree(random, tree, { isTyped = false } = {}) {
  for (let change = 1 + random.below(4); change > 0; change--) {
    const places = placesOf(tree, random)
    if (places.length === 0) return tree
    const { holder, key } = random.pick(places)
    const value = holder[key]
    if (Array.isArray(holder) && random.below(2) === 0) {
      if (random.below(2) === 0) holder.splice(Number(key), 1)
      else holder.splice(random.below(holder.length), 0, value)
    } else if (Array.isArray(value) && value.length > 0 && random.below(2) === 0) {
      if (random.below(2) === 0) value.splice(random.below(value.length), 1 + random.below(value.length))
      else value.push(random.pick(value))
    } else if (isTyped) {
      const alike = places
        .map((place) => place.holder[place.key])
        .filter((candidate) => typeof candidate === typeof value)
      if (typeof value === 'object') continue
      const changed = otherValue(random, value, alike)
      if (typeof changed === typeof value) holder[key] = changed
    } else if (random.below(4) === 0) delete holder[key]
    else {
      const { holder: from, key: name } = random.pick(places)
      holder[key] = structuredClone(otherValue(random, value, [from[name]]))
    }
  }
  return tree
}

/** @param isHead make most changes at the beginning, where binary files have their structure */
export function mutateBytes(random, bytes, { isHead = false } = {}) {
  let result = Buffer.from(bytes)
  for (let change = 1 + random.below(4); change > 0; change--) {
    const reach = isHead && random.below(4) > 0 ? Math.min(result.length, 1024) : result.length
    const at = random.below(reach + 1)
    const length = random.below(Math.min(16, result.length) + 1)
    const from = random.below(result.length - length + 1)
    switch (random.below(7)) {
      case 0:
        if (at < result.length) result[at] ^= 1 << random.below(8)
        break
      case 1:
        if (at < result.length) result[at] = random.below(256)
        break
      case 2:
        result = Buffer.concat([result.subarray(0, at), result.subarray(at + length)])
        break
      case 3:
        result = Buffer.concat([result.subarray(0, at), result.subarray(from, from + length), result.subarray(at)])
        break
      case 4:
        if (random.below(4) === 0) result = result.subarray(0, at)
        break
      case 5:
        if (at + 4 <= result.length) result.writeInt32LE(random.pick(EDGE_NUMBERS) | 0, at)
        break
      case 6:
        if (at + 8 <= result.length) result.writeBigInt64LE(BigInt(Math.trunc(random.pick(EDGE_NUMBERS))), at)
    }
  }
  return result
}

export function mutateText(random, bytes) {
  if (random.below(4) === 0) return mutateBytes(random, bytes)
  const parts = Buffer.from(bytes)
    .toString()
    .split(/(\b|\n)/)
  for (let change = 1 + random.below(4); change > 0; change--) {
    const at = random.below(parts.length)
    const choice = random.below(4)
    if (choice === 0) parts.splice(at, 1 + random.below(3))
    else if (choice === 1) parts.splice(at, 0, random.pick(parts))
    else if (choice === 2) parts[at] = random.pick(WORDS)
    else parts.splice(at, 0, ...Array(1 + random.below(200)).fill(random.pick(parts)))
  }
  return Buffer.from(parts.join(''))
}

export function mutateJson(random, bytes) {
  if (random.below(4) === 0) return mutateText(random, bytes)
  const tree = { root: JSON.parse(Buffer.from(bytes).toString()) }
  return Buffer.from(JSON.stringify(mutateTree(random, tree).root) ?? '')
}

/** Changes either the header of a safetensors file as a tree, or its bytes. */
export function mutateSafetensors(random, bytes) {
  if (random.below(3) === 0) return mutateBytes(random, bytes, { isHead: true })
  const end = 8 + Number(Buffer.from(bytes).readBigUInt64LE(0))
  const header = mutateJson(random, Buffer.from(bytes).subarray(8, end))
  const length = Buffer.alloc(8)
  length.writeBigUInt64LE(BigInt(header.length))
  return Buffer.concat([length, header, Buffer.from(bytes).subarray(end)])
}
