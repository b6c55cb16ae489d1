// Counts turns of phrase in comments and docstrings that are German in English words, and pronouns that stand without a
// noun. "There is no …" is good English and does not count. With --list each place is printed.
//
//   node scripts/dialect.mjs [--list] [FOLDER …]      the default is src

import { readdirSync, readFileSync } from 'node:fs'
import { join, relative } from 'node:path'
import { fileURLToPath } from 'node:url'
import ts from 'typescript'

const root = fileURLToPath(new URL('..', import.meta.url))

/** At most five of each may stand in `src`. */
const GERMAN = {
  'is no, are no': /(?<!\bthere )\b(?:is|are|was|were) no\b(?! longer| more| less| later| earlier)/gi,
  'is none, are none': /(?<!\bthere )\b(?:is|are) none\b/gi,
  'behind (for after)': /\bbehind\b/gi,
  'of which': /\bof which\b/gi,
  'Undefined where, Empty where': /\b(?:undefined|empty|none|null|nothing|zero|false|true) where\b/gi,
}

/** Many of these are good English: readers judge them. */
const PRONOUNS = {
  'those (without a noun)': /\bthose (?:of|that|which|who|in|with|are|is|by)\b|\bthose[.,;:]/gi,
  'what (as a noun)': /(?:^|[.;:] |\*\* )What\b|\b(?:of|for|with|from|by|in|to|than|as) what\b/g,
  'one (as a noun)': /\b(?:an|of|that|which|the|by|with|from|to|for) one\b|\bone (?:of|that|is|has)\b/gi,
  'own (without a noun)': /\bown\b[.,;:]|\bown (?:is|are|has|of)\b/gi,
  'other (without a noun)': /\bthe others?\b[.,;:]|\bothers?\b (?:is|are|has|have)\b/gi,
}

const list = process.argv.includes('--list')
const folders = process.argv.slice(2).filter((word) => !word.startsWith('--'))
const counts = new Map()
for (const folder of folders.length > 0 ? folders : ['src']) for (const file of sources(join(root, folder))) count(file)
for (const [title, patterns] of Object.entries({
  'German grammar': GERMAN,
  'Pronouns, for readers to judge': PRONOUNS,
})) {
  console.log(title)
  for (const name of Object.keys(patterns)) console.log(`${String(counts.get(name) ?? 0).padStart(6)}  ${name}`)
}

function sources(folder) {
  return readdirSync(folder, { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile() && /\.(ts|mts|mjs|js)$/.test(entry.name))
    .map((entry) => join(entry.parentPath, entry.name))
    .filter((path) => !/[\\/](gen|node_modules|dist)[\\/]/.test(path))
    .sort()
}

function count(path) {
  for (const comment of comments(readFileSync(path, 'utf8'))) {
    for (const [name, pattern] of Object.entries({ ...GERMAN, ...PRONOUNS })) {
      const found = comment.text.match(pattern)?.length ?? 0
      if (found === 0) continue
      counts.set(name, (counts.get(name) ?? 0) + found)
      if (list) console.log(`${relative(root, path)}:${comment.line}  [${name}]  ${comment.text}`)
    }
  }
}

/** The comments of a file, each as one line of text. Neighboring `//` lines are one comment. */
function comments(source) {
  const file = ts.createSourceFile('file.ts', source, ts.ScriptTarget.Latest)
  const ranges = new Map()
  const visit = (node) => {
    for (const range of ts.getLeadingCommentRanges(source, node.pos) ?? []) ranges.set(range.pos, range)
    for (const range of ts.getTrailingCommentRanges(source, node.end) ?? []) ranges.set(range.pos, range)
    ts.forEachChild(node, visit)
  }
  visit(file)
  const result = []
  let end = -1
  for (const range of [...ranges.values()].sort((a, b) => a.pos - b.pos)) {
    const text = source
      .slice(range.pos, range.end)
      .replace(/^\/\*+|\*\/$|^\/\/+/g, '')
      .replace(/\n\s*\*?\s?/g, ' ')
      .trim()
    const isLine = range.kind === ts.SyntaxKind.SingleLineCommentTrivia
    const follows = isLine && end !== -1 && /^[ \t]*\r?\n[ \t]*$/.test(source.slice(end, range.pos))
    if (follows) result.at(-1).text += ` ${text}`
    else result.push({ line: source.slice(0, range.pos).split('\n').length, text })
    end = isLine ? range.end : -1
  }
  return result
}
