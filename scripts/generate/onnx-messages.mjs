// Turns protoc-gen-es's file into the file that src/onnx/format/protobuf.ts reads: types stay, descriptors become a
// table of fields, and enums become objects that bundlers can leave out. The library that reads descriptors is larger
// than all other code for ONNX's files. The tests compare with this library, so they keep the original file.
// `npm run generate` calls this script after buf.

import { readFileSync, writeFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import { ScalarType } from '@bufbuild/protobuf'
import { fileDesc } from '@bufbuild/protobuf/codegenv2'

const file = fileURLToPath(new URL('../../src/onnx/format/gen/onnx_pb.ts', import.meta.url))
const source = readFileSync(file, 'utf8')
const [, encoded] = /fileDesc\("([^"]*)"\)/.exec(source)
const parts = encoded.match(/.{1,110}/g).map((part) => `    '${part}',\n`)
writeFileSync(
  new URL('../../tests/onnx/format/gen/onnx-descriptor.ts', import.meta.url),
  `import { fileDesc } from '@bufbuild/protobuf/codegenv2'\n\nexport const file = fileDesc(\n  [\n${parts.join('')}  ].join(''),\n)\n`,
)

const shortName = ({ typeName }) => typeName.replace(/^onnx\./, '').replaceAll('.', '_')

/**
 * Writes a field as `opType:4 string`, with * after a list's type, ** after a packed list's, and `oneof.` before it.
 */
function entryOf(field) {
  if (field.fieldKind === 'map' || field.delimitedEncoding || field.getDefaultValue?.() !== undefined) {
    throw new Error(`${field}: not supported`)
  }
  const isList = field.fieldKind === 'list'
  const kind = isList ? field.listKind : field.fieldKind
  const type = {
    message: () => shortName(field.message),
    enum: () => 'int32',
    scalar: () => ScalarType[field.scalar].toLowerCase(),
  }[kind]()
  const name = field.oneof === undefined ? field.localName : `${field.oneof.localName}.${field.localName}`
  return `${name}:${field.number} ${type}${isList ? (field.packed ? '**' : '*') : ''}`
}

const messages = []
const collect = (list) => {
  for (const message of list) {
    messages.push(message)
    collect(message.nestedMessages)
  }
}
collect(fileDesc(encoded).messages)
const rows = messages.map((message) => `  ${shortName(message)}: '${message.fields.map(entryOf).join(', ')}',\n`)
const table = `const TABLE = /*@__PURE__*/ readTable({\n${rows.join('')}})\n`

const rewritten = source
  .replace(/^import type \{ Gen.*\n/m, '')
  .replace(/^import \{ enumDesc.*\n/m, "import { readTable, schemaOf, type Schema } from '../protobuf.js'\n")
  .replace(/\/\*\*\n \* Describes the file onnx\.proto\.\n \*\/\nexport const file_onnx[\s\S]*?\n\n/, `${table}\n`)
  .replace(
    /(export const (\w+)Schema): GenMessage<(\w+)> = \/\*@__PURE__\*\/\s*messageDesc\(.*\);/g,
    "$1: Schema<$3> = /*@__PURE__*/ schemaOf(TABLE, '$2');",
  )
  .replace(/\/\*\*\n \* Describes the enum [\s\S]*?enumDesc\(.*\);\n\n?/g, '')
  .replace(/export enum (\w+) \{([\s\S]*?)\n\}/g, (_, name, body) => {
    const entries = body.replace(/^( +)(\w+) = (\d+),$/gm, '$1$2: $3,')
    return `export const ${name} = {${entries}\n} as const;\nexport type ${name} = number;`
  })
writeFileSync(file, rewritten)
