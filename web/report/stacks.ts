// Names of layers as a grid: model.layers.3.self_attn.q_proj is column 3 and row self_attn.q_proj of model.layers.

export interface Stack {
  /** The part of the names before the number. Empty for layers without a number. */
  name: string
  /** Numbers of the columns. One column, -1, for layers without a number. */
  columns: number[]
  /** The part of the names after the number. Whole names for layers without one. */
  rows: string[]
  /** cells[row][column] is the layer's place in the list of names, or null. */
  cells: (number | null)[][]
}

/** Stacks and rows in the order of the names, columns by number. Layers without a number come last. */
export function stacksOf(names: readonly string[]): Stack[] {
  const found = new Map<string, Map<string, Map<number, number>>>()
  names.forEach((name, i) => {
    const { stack, column, row } = splitName(name)
    const rows = found.get(stack) ?? new Map<string, Map<number, number>>()
    found.set(stack, rows)
    const cells = rows.get(row) ?? new Map<number, number>()
    rows.set(row, cells)
    cells.set(column, i)
  })
  const stacks = [...found].map(([name, rows]): Stack => {
    const columns = [...new Set([...rows.values()].flatMap((cells) => [...cells.keys()]))].sort((a, b) => a - b)
    const cells = [...rows.values()].map((columnsOfRow) => columns.map((column) => columnsOfRow.get(column) ?? null))
    return { name, columns, rows: [...rows.keys()], cells }
  })
  return [...stacks.filter(({ name }) => name !== ''), ...stacks.filter(({ name }) => name === '')]
}

/** The first number between dots is the layer's, as in PEFT's layers_to_transform. */
function splitName(name: string): { stack: string; column: number; row: string } {
  const [, stack, number, row] = /^(.+?)\.(\d{1,6})(?:\.(.+))?$/s.exec(name) ?? []
  if (stack === undefined) return { stack: '', column: -1, row: name }
  return { stack, column: Number(number), row: row ?? stack.slice(stack.lastIndexOf('.') + 1) }
}
