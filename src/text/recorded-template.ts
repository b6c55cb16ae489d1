// A chat template with the variables that training set: an adapter is asked with both, so they are kept as one text.

/**
 * The template with a first line for each variable. A variable that the caller sets keeps the caller's value.
 *
 * @param args values that JSON has
 */
export function recordTemplate(text: string, args: Readonly<Record<string, unknown>> = {}): string {
  const named = Object.entries(args).filter(([name]) => /^[A-Za-z_]\w*$/.test(name))
  const lines = named.map(([name, value]) => {
    return `{%- if ${name} is not defined %}{%- set ${name} = ${literal(value)} %}{%- endif %}`
  })
  return lines.length === 0 ? text : `${lines.join('\n')}\n{{- '' }}${text}`
}

/** A value as Jinja writes it. */
function literal(value: unknown): string {
  if (value === null || value === undefined) return 'none'
  if (Array.isArray(value)) return `[${value.map(literal).join(', ')}]`
  if (typeof value !== 'object') return JSON.stringify(value)
  const entries = Object.entries(value).map(([key, one]) => `${JSON.stringify(key)}: ${literal(one)}`)
  return `{${entries.join(', ')}}`
}
