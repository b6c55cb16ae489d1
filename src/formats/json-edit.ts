// Changes single members of a JSON text. All else stays as it is written: strict readers tell `1.0` from `1`.

const TOKEN = /"(?:[^"\\]|\\.)*"|[{}[\],:]|[^\s{}[\],:"]+/g

/**
 * A member that is missing is added to its object, or else to the outermost one. `path` has keys from the outside
 * inwards.
 */
export function setMember(text: string, path: readonly string[], value: unknown): string {
  const written = JSON.stringify(value)
  const span = findValue(text, path)
  if (span !== undefined) return text.slice(0, span.start) + written + text.slice(span.end)
  const holder = path.length > 1 ? findValue(text, path.slice(0, -1)) : undefined
  if (holder !== undefined && text[holder.start] === '{') {
    const inner = setMember(text.slice(holder.start, holder.end), path.slice(-1), value)
    return text.slice(0, holder.start) + inner + text.slice(holder.end)
  }
  const before = text.slice(0, text.lastIndexOf('}')).trimEnd()
  const space = /^\s*\{(\s*)/.exec(text)?.[1] ?? ''
  const comma = before.endsWith('{') ? '' : ','
  return `${before}${comma}${space}${JSON.stringify(path.at(-1))}: ${written}${text.slice(before.length)}`
}

/** The last of equal keys counts, as in JSON.parse. */
function findValue(text: string, path: readonly string[]): { start: number; end: number } | undefined {
  const open: { isArray: boolean; key: string | undefined; start: number }[] = []
  const isHere = () => open.length === path.length && open.every(({ key }, i) => key === path[i])
  let found: { start: number; end: number } | undefined
  for (const { 0: token, index } of text.matchAll(TOKEN)) {
    const end = index + token.length
    const holder = open.at(-1)
    if (token === '{' || token === '[') open.push({ isArray: token === '[', key: undefined, start: index })
    else if (token === '}' || token === ']') {
      const { start } = open.pop()!
      if (isHere()) found = { start, end }
    } else if (token === ',') holder!.key = undefined
    else if (token === ':') continue
    else if (holder?.isArray === false && holder.key === undefined) holder.key = JSON.parse(token)
    else if (isHere()) found = { start: index, end }
  }
  return found
}
