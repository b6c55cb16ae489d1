// Reads a corpus and the questions that ask for its documents: folders of texts, records with ids, and BEIR's layout
// (corpus.jsonl, queries.jsonl, and qrels such as test.tsv).

import { type Directory, readText } from '../../core/base/bytes.js'
import { DataError } from '../../core/base/errors.js'
import { isObject, objectOf, toJson } from '../../core/base/options.js'
import { readRows } from '../../files/data/read-rows.js'
import { type ColumnNames, isDirectory, type Row } from '../../files/data/row.js'
import { fieldsOf } from '../../model/text/records.js'
import type { TrainingData } from '../options.js'
import { QUERY_FIELDS, questionOf } from '../tasks/vectors/related-texts.js'

/** A document of a corpus. */
export interface CorpusDocument {
  readonly id: string
  readonly text: string
  /** File and line. */
  readonly where: string
}

/** A question with the documents that answer it. */
export interface Question {
  readonly text: string
  /** Where it was read first, and that record as JSON. */
  readonly where: string
  readonly record: string
  /** Grades of documents, by their places in the corpus. From 1 on, a document is relevant. */
  readonly grades: Map<number, number>
}

const TEXT_FILE = /\.(md|markdown|txt|rst)$/i
const IDS = ['_id', 'id', 'docid'] as const
const TEXTS = ['text', 'passage', 'document', 'content'] as const
const QUERY_ID = 'query-id'

export async function readCorpus(corpus: TrainingData): Promise<CorpusDocument[]> {
  const documents: CorpusDocument[] = []
  const places = new Map<string, string>()
  for await (const { row, where } of corpusRows(corpus)) {
    const record = objectOf(row)
    const field = TEXTS.find((name) => typeof record[name] === 'string')
    if (field === undefined) {
      throw new DataError({
        where,
        what: 'a document without a text',
        expected: TEXTS.join(', '),
        got: fieldsOf(record),
      })
    }
    const text = [record.title, record[field]].filter((part) => typeof part === 'string' && part !== '').join(' ')
    if (text.trim() === '') throw new DataError({ where, what: 'a document whose text is empty' })
    const id = idOf(record) ?? where
    const earlier = places.get(id)
    if (earlier !== undefined) throw new DataError({ where, what: `the id "${id}" is that of ${earlier} too` })
    places.set(id, where)
    documents.push({ id, text, where })
  }
  if (documents.length === 0) throw new DataError({ where: 'corpus', what: 'it has no documents' })
  return documents
}

function idOf(record: Readonly<Record<string, unknown>>): string | undefined {
  const name = IDS.find((name) => record[name] !== undefined && record[name] !== null)
  return name === undefined ? undefined : String(record[name])
}

async function* corpusRows(corpus: TrainingData): AsyncGenerator<Row> {
  if (!isDirectory(corpus)) return yield* readRows(corpus, { name: 'corpus' })
  if (await corpus.has('corpus.jsonl')) return yield* rowsIn(corpus, 'corpus.jsonl')
  const texts = await textFiles(corpus)
  if (texts.length === 0) return yield* readRows(corpus)
  for (const id of texts) yield { row: { id, text: await readText(corpus, id) }, where: `${corpus.name}/${id}` }
}

async function* rowsIn(directory: Directory, file: string): AsyncGenerator<Row> {
  const source = await directory.open(file)
  try {
    yield* readRows(source)
  } finally {
    await source.close()
  }
}

/** The files of texts in a folder and in its folders. */
async function textFiles(directory: Directory): Promise<string[]> {
  const inside = (await directory.folders?.()) ?? []
  const lists = await Promise.all(
    inside.map(async (folder) => (await directory.list(folder)).map((file) => `${folder}/${file}`)),
  )
  return [await directory.list(), ...lists].flat().filter((file) => TEXT_FILE.test(file))
}

/**
 * Reads questions: a text and the texts of its documents, a text with `relevant` (ids, or grades by id), or rows of
 * qrels, whose questions are in the folder of the corpus. Questions with the same text are one.
 */
export async function readQuestions(
  data: TrainingData,
  corpus: TrainingData,
  documents: readonly CorpusDocument[],
  columns?: ColumnNames,
): Promise<Question[]> {
  const byText = new Map<string, number[]>()
  for (const [i, { text }] of documents.entries()) byText.set(text, [...(byText.get(text) ?? []), i])
  const byId = new Map(documents.map(({ id }, i) => [id, i]))
  const found = new Map<string, Question>()
  let queries: Map<string, string> | undefined
  const add = (text: string, { row, where }: Row, grades: Iterable<readonly [number, number]>) => {
    const known = found.get(text) ?? { text, where, record: toJson(row), grades: new Map<number, number>() }
    found.set(text, known)
    for (const [document, grade] of grades) known.grades.set(document, Math.max(grade, known.grades.get(document) ?? 0))
  }
  const documentOf = (id: string, where: string) => {
    const document = byId.get(id)
    if (document === undefined) throw new DataError({ where, what: `the corpus has no document "${id}"` })
    return document
  }
  for await (const line of readRows(data, { columns })) {
    const { row, where } = line
    const record = objectOf(row)
    const queryId = record[QUERY_ID] ?? record.query_id
    if (queryId !== undefined) {
      queries ??= await queriesOf(corpus, where)
      const text = queries.get(String(queryId))
      if (text === undefined) throw new DataError({ where, what: `queries.jsonl has no question "${queryId}"` })
      const grade = Number(record.score ?? 1)
      const id = String(record['corpus-id'] ?? record.corpus_id)
      if (!Number.isFinite(grade)) throw new DataError({ where, what: 'score is no number', got: String(record.score) })
      add(text, line, [[documentOf(id, where), grade]])
      continue
    }
    const { relevant } = record
    if (relevant !== undefined) {
      const field = QUERY_FIELDS.find((name) => typeof record[name] === 'string' && record[name] !== '')
      if (field === undefined) throw new DataError({ where, what: 'no question', got: fieldsOf(record) })
      const grades = isObject(relevant)
        ? Object.entries(relevant)
        : [relevant].flat().map((id) => [String(id), 1] as const)
      add(
        record[field] as string,
        line,
        grades.map(([id, grade]) => [documentOf(id, where), Number(grade)]),
      )
      continue
    }
    const question = questionOf(row)
    if (question === undefined) {
      const expected = 'a query with the texts of its passages, with `relevant` (ids), or query-id and corpus-id'
      throw new DataError({ where, what: 'no question with its documents', expected, got: fieldsOf(record) })
    }
    const places = question.documents.flatMap((text) => {
      const same = byText.get(text)
      if (same !== undefined) return same
      throw new DataError({
        where,
        what: 'the corpus has no document with this text',
        got: JSON.stringify(text.slice(0, 100)),
      })
    })
    add(
      question.query,
      line,
      places.map((place) => [place, 1]),
    )
  }
  if (found.size === 0) throw new DataError({ where: 'data', what: 'it has no questions' })
  return [...found.values()]
}

async function queriesOf(corpus: TrainingData, where: string): Promise<Map<string, string>> {
  if (!isDirectory(corpus) || !(await corpus.has('queries.jsonl'))) {
    const expected = "BEIR's folder as the corpus, with corpus.jsonl and queries.jsonl"
    throw new DataError({ where, what: 'a row of qrels, but there is no queries.jsonl beside the corpus', expected })
  }
  const queries = new Map<string, string>()
  for await (const { row, where: place } of rowsIn(corpus, 'queries.jsonl')) {
    const record = objectOf(row)
    const id = idOf(record)
    if (id === undefined || typeof record.text !== 'string' || record.text.trim() === '') {
      throw new DataError({ where: place, what: 'a question needs "_id" and "text"', got: fieldsOf(record) })
    }
    if (queries.has(id)) throw new DataError({ where: place, what: `a second question "${id}"` })
    queries.set(id, record.text)
  }
  return queries
}
