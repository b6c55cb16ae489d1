// Makes the tables of options from the types of src/: what each option may be, its default, and its help on the command
// line. An option is written once: as a member of an interface, with a docstring. The docstring's first paragraph is
// its help. Tags:
//   @range an integer of at least 1 | a number in (0, 1]    what a number may be
//   @default 8                                              what lowrank takes if the option is left out
//   @train 16                                               the default of `train`, if it differs
//   @flag DIR|FILE                                          the word for the value in the help
//   @help a text                                            help that differs from the docstring, such as for files
// Usage: node scripts/generate/options.mjs [--check]

import { existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import ts from 'typescript'

const root = fileURLToPath(new URL('../..', import.meta.url))

const BASE = 'src/core/base/options.ts'

/** Generated file → files with the types → interfaces whose options the generated file checks. */
const TABLES = {
  'src/api/gen/options.ts': {
    'src/api/adapters.ts': ['ToPlainOptions'],
    'src/api/evaluation.ts': ['EvaluateOptions', 'MineOptions'],
    'src/api/export/handoff.ts': ['HandoffOptions'],
    'src/api/inspect.ts': ['InspectOptions'],
    'src/api/merge-options.ts': ['MergeOptions', 'UnmergeOptions'],
    'src/api/export/push.ts': ['PushOptions'],
    'src/api/tools.ts': ['CombineOptions', 'ConvertAdapterOptions', 'DiffOptions', 'ResizeOptions'],
    'src/api/open-run.ts': ['CheckDataOptions'],
    'src/lora/peft/adapter-folder.ts': ['SaveOptions'],
    'src/train/options.ts': ['TrainOptions'],
  },
  // A smaller table, for pages that only run adapters.
  'src/api/gen/run-options.ts': {
    'src/api/hub.ts': ['HubOptions'],
    'src/api/model.ts': ['LoadModelOptions'],
    'src/api/session.ts': ['OpenSessionOptions'],
    'src/lora/peft/open.ts': ['LoadOptions'],
  },
  'src/lora/gen/options.ts': {
    'src/lora/config.ts': ['LoraConfig'],
    'src/lora/kinds/stored.ts': ['ReplacementOptions'],
  },
  'src/onnx/gen/options.ts': { 'src/onnx/differentiate.ts': ['GradientOptions'] },
  'src/run/gen/options.ts': {
    'src/run/generate/sampling.ts': ['SamplingOptions'],
    'src/run/readings/options.ts': ['ClassifyOptions', 'EmbedOptions', 'RerankOptions', 'TagOptions'],
    'src/run/session.ts': ['EncodeOptions', 'GenerateOptions', 'RunOptions', 'ScoreOptions', 'StreamOptions'],
  },
  'src/train/loop/gen/options.ts': {
    'src/train/loop/distill.ts': ['DistillOptions'],
    'src/train/loop/grpo-loss.ts': ['GrpoOptions'],
    'src/train/loop/graders/forms.ts': [
      'LabelModelGrader',
      'MultiGrader',
      'SamplingParams',
      'ScoreModelGrader',
      'StringCheckGrader',
      'TextSimilarityGrader',
    ],
    'src/train/loop/trainer-options.ts': [
      'ForwardBackwardOptions',
      'SampleOptions',
      'StepOptions',
      'TrainerOptions',
      'TrainerSaveOptions',
    ],
  },
  'src/serve/gen/options.ts': {
    'src/serve/handler-options.ts': ['HandlerOptions'],
    'src/serve/jobs/node/training-options.ts': ['TrainingOptions'],
    'src/serve/node/listen.ts': ['ListenOptions'],
  },
  'src/train/tasks/gen/options.ts': {
    'src/train/tasks/dpo.ts': ['DpoOptions'],
    'src/train/tasks/embedding.ts': ['EmbeddingOptions'],
    'src/train/tasks/kto.ts': ['KtoOptions'],
    'src/train/tasks/labels/label-problems.ts': ['LabelOptions'],
    'src/train/tasks/reranking.ts': ['RerankingOptions'],
    'src/train/tasks/token-classification.ts': ['TagOptions'],
  },
  'src/train/gen/options.ts': { 'src/train/settings.ts': ['TrainSettings'] },
  'src/app/transformers/gen/options.ts': { 'src/app/transformers/verbs.ts': ['PipelineOptions'] },
}

/** Interfaces whose members are options of the command line. */
const FLAGS = [
  ...['CheckDataOptions', 'ClassifyOptions', 'CombineOptions', 'ConvertAdapterOptions', 'EmbedOptions'],
  ...['EmbeddingOptions', 'EvaluateOptions'],
  ...[
    'GenerateOptions',
    'HandlerOptions',
    'HandoffOptions',
    'InspectOptions',
    'ListenOptions',
    'LoadModelOptions',
    'LoraConfig',
  ],
  ...['MergeOptions', 'MineOptions', 'OpenSessionOptions'],
  ...[
    'PushOptions',
    'RerankOptions',
    'ResizeOptions',
    'ToPlainOptions',
    'TrainOptions',
    'TrainingOptions',
    'UnmergeOptions',
  ],
]

/** Interfaces whose defaults the code reads from a table, with the members in that table. */
const DEFAULTS = {
  GenerateOptions: ({ tags }) => tags.default !== undefined,
  LoraConfig: () => true,
  TrainSettings: () => true,
}

/**
 * Kinds that are written by hand: the name of a type or an option → the constant, its file, and how a flag writes it.
 */
const KINDS = {
  'AdapterSessionOptions.adapters': ['NAMED_ADAPTERS', 'src/model/source-values.ts'],
  'CombineOptions.adapters': ['ADAPTER_LIST', 'src/model/source-values.ts'],
  'EmbeddingOptions.loss': ['LOSS_NAME', 'src/train/tasks/task-values.ts'],
  'RerankingOptions.loss': ['RANK_LOSS_NAME', 'src/train/tasks/task-values.ts'],
  'EmbeddingOptions.matryoshkaDims': ['DIMENSIONS', 'src/train/tasks/task-values.ts'],
  'EmbeddingOptions.queryPrompt': ['STRING', BASE, 'text'],
  'EmbeddingOptions.documentPrompt': ['STRING', BASE, 'text'],
  'EmbedOptions.prompt': ['STRING', BASE, 'text'],
  'EmbedOptions.ranges': ['RANGES', 'src/run/readings/quantize.ts'],
  'MineOptions.queryPrompt': ['STRING', BASE, 'text'],
  'MineOptions.documentPrompt': ['STRING', BASE, 'text'],
  'EvaluateOptions.at': ['DIMENSIONS', 'src/train/tasks/task-values.ts', 'tokens'],
  'EvaluateOptions.adapters': ['NAMED_ADAPTERS', 'src/model/source-values.ts'],
  'StreamOptions.logitBias': ['LOGIT_BIAS', 'src/run/media-values.ts'],
  'StreamOptions.stopTokenIds': ['TOKEN_IDS', 'src/run/media-values.ts'],
  'HandlerOptions.apiKeys': ['API_KEYS', 'src/serve/keys.ts'],
  'HandlerOptions.aliases': ['ALIASES', 'src/serve/upstream/upstreams.ts'],
  'HandlerOptions.adapters': ['NAMED_ADAPTERS', 'src/model/source-values.ts'],
  'GradientOptions.runtime': ['OBJECT', BASE],
  'HandlerOptions.session': ['OBJECT', BASE],
  'HandlerOptions.training': ['OBJECT', BASE],
  'HubOptions.endpoint': ['ENDPOINT', BASE],
  'LabelOptions.classWeights': ['CLASS_WEIGHTS', 'src/train/tasks/task-values.ts'],
  'LoraConfig.targetModules': ['MODULES', 'src/lora/config-kinds.ts', 'names'],
  'LoraConfig.excludeModules': ['MODULES', 'src/lora/config-kinds.ts', 'names'],
  'LoraConfig.layersPattern': ['MODULES', 'src/lora/config-kinds.ts', 'names'],
  'LoraConfig.layersToTransform': ['LAYERS', 'src/lora/config-kinds.ts'],
  'LoraConfig.rankPattern': ['RANKS', 'src/lora/config-kinds.ts', 'numbers'],
  'LoraConfig.alphaPattern': ['ALPHAS', 'src/lora/config-kinds.ts', 'numbers'],
  'LoraConfig.modulesToSave': ['SHORT_LIST', 'src/lora/config-kinds.ts', 'names'],
  'LoraConfig.targetParameters': ['SHORT_LIST', 'src/lora/config-kinds.ts', 'names'],
  'LoraConfig.trainableTokenIndices': ['TOKEN_INDICES', 'src/lora/config-kinds.ts'],
  'LoraConfig.init': ['INIT', 'src/lora/config-kinds.ts', 'word'],
  'LoraConfig.baseModel': ['STRING', BASE],
  'LoraConfig.taskType': ['STRING', BASE],
  'MergeOptions.adapters': ['ADAPTERS', 'src/model/source-values.ts'],
  'OpenSessionOptions.adapters': ['NAMED_ADAPTERS', 'src/model/source-values.ts'],
  'PipelineOptions.adapters': ['NAMED_ADAPTERS', 'src/model/source-values.ts'],
  'ScoreModelGrader.range': ['NUMBERS', BASE],
  'StreamOptions.images': ['IMAGES', 'src/run/media-values.ts'],
  'TagOptions.tagNames': ['TAG_NAMES', 'src/train/tasks/task-values.ts'],
  'TrainOptions.graderModels': ['OBJECT', BASE, 'pairs'],
  'TrainingOptions.graderModels': ['OBJECT', BASE, 'pairs'],
  'UnmergeOptions.adapters': ['ADAPTERS', 'src/model/source-values.ts'],
  AdapterChoice: ['ONE_CHOICE', 'src/run/adapters/choice.ts'],
  Data: ['DATA', 'src/model/source-values.ts', 'files'],
  LoraAdapter: ['ADAPTER', 'src/model/source-values.ts'],
  LoraConfigInput: ['OBJECT', BASE],
  Model: ['MODEL', 'src/model/source-values.ts', 'source'],
  RuntimeHost: ['RUNTIME', 'src/model/source-values.ts'],
  SignalLike: ['SIGNAL', 'src/core/base/options.ts'],
  Source: ['SOURCE', 'src/model/source-values.ts', 'source'],
  Target: ['TARGET', 'src/model/source-values.ts', 'target'],
  TokenChoice: ['TOKEN', 'src/model/source-values.ts', 'token'],
  TaskName: ['NAME', BASE, 'text'],
}

/** Option → the form of its flag's value, if the option's type does not tell it. */
const FORMS = { 'LoraConfig.targetModules': 'modules' }

/** The words of a flag that accepts fewer words than its option: the constant that lists them, and its file. */
const WORDS = { 'LoraConfig.init': ['DRAWN_INITS', 'src/lora/init/inits.ts'] }

/** Interfaces whose members are all required in the code, but optional in a call. */
const COMPLETE = ['LoraConfig', 'TrainSettings']

/** Interfaces whose defaults are all that the code needs. Their values are checked by another table. */
const UNCHECKED = ['TrainSettings']

const program = ts.createProgram(
  [...new Set(Object.values(TABLES).flatMap((files) => Object.keys(files)))].map((file) => path.join(root, file)),
  {
    ...{
      target: ts.ScriptTarget.ES2022,
      module: ts.ModuleKind.NodeNext,
      moduleResolution: ts.ModuleResolutionKind.NodeNext,
    },
    ...{ strict: true, noEmit: true, skipLibCheck: true, types: [], lib: ['lib.es2022.d.ts'] },
  },
)
const checker = program.getTypeChecker()

/** The declaration of an interface. */
function declarationOf(file, name) {
  const source = program.getSourceFile(path.join(root, file))
  const found = source?.statements.find(
    (node) => (ts.isInterfaceDeclaration(node) || ts.isTypeAliasDeclaration(node)) && node.name.text === name,
  )
  if (found === undefined) throw new Error(`${file} declares no ${name}`)
  return found
}

/** The members of an interface: name, docstring, tags, type, and true if it must be given. */
function membersOf(file, name) {
  const type = checker.getTypeAtLocation(declarationOf(file, name).name)
  return checker.getPropertiesOfType(type).map((symbol) => {
    const declaration = symbol.declarations?.find((node) => ts.isPropertySignature(node) || ts.isMethodSignature(node))
    if (declaration === undefined) throw new Error(`${name}.${symbol.name} has no declaration`)
    const tags = Object.fromEntries(
      symbol.getJsDocTags(checker).map((tag) => [tag.name, ts.displayPartsToString(tag.text).replaceAll(/\s+/g, ' ')]),
    )
    const about = ts.displayPartsToString(symbol.getDocumentationComment(checker))
    const owner = declaration.parent.name?.text
    const isRequired = (symbol.flags & ts.SymbolFlags.Optional) === 0 && !COMPLETE.includes(name)
    return { name: symbol.name, about, tags, node: declaration.type, owner, of: name, isRequired }
  })
}

/** The kind of a value: the expression that checks it, the constants that this needs, and how a flag writes it. */
function kindOf(member) {
  if (member.node === undefined || ts.isMethodSignature(member.node.parent)) return ofBase('FUNCTION')
  const byHand = KINDS[`${member.of}.${member.name}`] ?? KINDS[`${member.owner}.${member.name}`]
  if (byHand !== undefined) return constant(byHand)
  if (member.tags.range !== undefined) {
    return { code: `ranged(${quoted(member.tags.range)})`, uses: [['ranged', BASE]], form: 'number' }
  }
  return kindOfNode(member.node, member)
}

const constant = ([name, file, form]) => ({ code: name, uses: [[name, file]], form })
const ofBase = (name, form) => constant([name, BASE, form])
const quoted = (text) => (text.includes("'") ? JSON.stringify(text) : `'${text}'`)

function kindOfNode(node, member) {
  if (node.operator === ts.SyntaxKind.KeyOfKeyword) {
    const keys = checker.getPropertiesOfType(checker.getTypeFromTypeNode(node.type))
    return oneOf(keys.map((key) => quoted(key.name)))
  }
  if (ts.isParenthesizedTypeNode(node) || ts.isTypeOperatorNode(node)) return kindOfNode(node.type, member)
  if (ts.isFunctionTypeNode(node)) return ofBase('FUNCTION')
  if (ts.isUnionTypeNode(node)) return kindOfUnion(node, member)
  if (ts.isArrayTypeNode(node)) return listOf(kindOfNode(node.elementType, member))
  if (ts.isTypeReferenceNode(node)) return kindOfReference(node, member)
  switch (node.kind) {
    case ts.SyntaxKind.BooleanKeyword:
      return ofBase('BOOLEAN', 'switch')
    case ts.SyntaxKind.StringKeyword:
      return ofBase('NAME', 'text')
    case ts.SyntaxKind.ObjectKeyword:
      return ofBase('OBJECT')
  }
  return wordsOf(checker.getTypeFromTypeNode(node), node) ?? unknown(node, member)
}

function listOf(item) {
  return {
    code: `listOf(${item.code})`,
    uses: [['listOf', BASE], ...item.uses],
    form: { text: 'names', token: 'tokens' }[item.form],
  }
}

function kindOfReference(node, member) {
  const name = node.typeName.getText()
  if (member.name === 'on') {
    const events = checker.getPropertiesOfType(checker.getTypeFromTypeNode(node)).map((event) => quoted(event.name))
    return { code: `eventsOf(${events.join(', ')})`, uses: [['eventsOf', BASE]] }
  }
  if (KINDS[name] !== undefined) return constant(KINDS[name])
  if (name === 'Readonly' || name === 'Record') {
    const record = name === 'Record' ? node : node.typeArguments[0]
    const value = record.typeArguments?.[1]?.getText()
    return ofBase('OBJECT', { string: 'pairs', number: 'numbers', unknown: 'settings' }[value])
  }
  let symbol = checker.getSymbolAtLocation(node.typeName)
  if (symbol.flags & ts.SymbolFlags.Alias) symbol = checker.getAliasedSymbol(symbol)
  const [declaration] = symbol.declarations
  if (ts.isInterfaceDeclaration(declaration)) return ofBase('OBJECT')
  if (ts.isTypeAliasDeclaration(declaration)) return kindOfNode(declaration.type, member)
  return wordsOf(checker.getTypeFromTypeNode(node)) ?? unknown(node, member)
}

function kindOfUnion(node, member) {
  const isKeyword = (part, kind) => part.kind === kind || (ts.isLiteralTypeNode(part) && part.literal.kind === kind)
  const isNull = node.types.some((part) => isKeyword(part, ts.SyntaxKind.NullKeyword))
  const types = node.types.filter(
    (part) => !isKeyword(part, ts.SyntaxKind.NullKeyword) && !isKeyword(part, ts.SyntaxKind.UndefinedKeyword),
  )
  const literals = types.filter((part) => ts.isLiteralTypeNode(part))
  const kinds = types.filter((part) => !ts.isLiteralTypeNode(part)).map((part) => kindOfNode(part, member))
  if (literals.length > 0) kinds.unshift(oneOf(literals.map((literal) => literal.getText())))
  const distinct = [...new Map(kinds.map((kind) => [kind.code, kind])).values()]
  const [first] = distinct
  const uses = distinct.flatMap((kind) => kind.uses)
  const form =
    distinct.find((kind) => ['names', 'tokens'].includes(kind.form))?.form ?? distinct.find((kind) => kind.form)?.form
  const words = distinct.flatMap((kind) => kind.words ?? [])
  const any =
    distinct.length === 1
      ? first
      : { code: `anyOf(${distinct.map(({ code }) => code).join(', ')})`, uses: [['anyOf', BASE], ...uses], form, words }
  return isNull ? { ...any, code: `orNull(${any.code})`, uses: [['orNull', BASE], ...any.uses] } : any
}

/** The kind of a type that has a fixed set of words: of `(typeof WORDS)[number]` in the order of the list. */
function wordsOf(type, node) {
  const list = node !== undefined && ts.isIndexedAccessTypeNode(node) && checker.getTypeFromTypeNode(node.objectType)
  const members =
    list && checker.isTupleType(list) ? checker.getTypeArguments(list) : type.isUnion() ? type.types : [type]
  const words = members.filter((item) => !(item.flags & ts.TypeFlags.Undefined))
  if (words.length === 0 || !words.every((word) => word.isStringLiteral())) return undefined
  return oneOf(words.map(({ value }) => quoted(value)))
}

/** The words of a constant list. */
function wordsIn([name, file] = []) {
  if (name === undefined) return undefined
  const source = program.getSourceFile(path.join(root, file))
  const symbol = checker
    .getExportsOfModule(checker.getSymbolAtLocation(source))
    .find((exported) => exported.name === name)
  const words = checker.getTypeArguments(checker.getTypeOfSymbol(symbol))
  return words.map(({ value }) => value)
}

function oneOf(words) {
  if (!words.every((word) => /^['"]/.test(word))) return { code: `oneOf(${words.join(', ')})`, uses: [['oneOf', BASE]] }
  return {
    code: `oneOf(${words.join(', ')})`,
    uses: [['oneOf', BASE]],
    form: 'word',
    words: words.map((word) => word.slice(1, -1)),
  }
}

function unknown(node, { of, name }) {
  throw new Error(`${of}.${name}: no kind for ${node.getText()}; give it a @range, or list it in KINDS`)
}

/** TrainOptions → TRAIN_OPTIONS */
const constantName = (name) => name.replaceAll(/(?!^)[A-Z]/g, '_$&').toUpperCase()

const HEAD = '// Made by scripts/generate/options.mjs from the types. Do not edit.\n\n'

function relative(from, to) {
  const found = path.relative(path.dirname(from), to).replaceAll('\\', '/').replace(/\.ts$/, '.js')
  return found.startsWith('.') ? found : `./${found}`
}

/** A file of tables: what each option of the interfaces may be, and their defaults. */
function tableFile(out, files) {
  const uses = new Map()
  const use = (name, file) => uses.set(file, (uses.get(file) ?? new Set()).add(name))
  let body = ''
  for (const [file, names] of Object.entries(files)) {
    for (const name of names) {
      const members = membersOf(file, name)
      if (!UNCHECKED.includes(name)) {
        use('type OptionTable', BASE)
        const lines = members.map((member) => {
          const { code, uses: needed } = kindOf(member)
          for (const [constant, source] of needed) use(constant, source)
          if (!member.isRequired) return `  ${member.name}: ${code},\n`
          use('needed', BASE)
          return `  ${member.name}: needed(${code}),\n`
        })
        body += `export const ${constantName(name)}: OptionTable = {\n${lines.join('')}}\n\n`
      }
      if (DEFAULTS[name] !== undefined) {
        const values = members.filter(DEFAULTS[name]).map(({ name, tags }) => `  ${name}: ${sourceOfDefault(tags)},\n`)
        body += `export const ${constantName(name)}_DEFAULTS = {\n${values.join('')}} as const\n\n`
      }
      const trained = members.filter(({ tags }) => tags.train !== undefined)
      if (trained.length > 0) {
        const values = trained.map(({ name, tags }) => `  ${name}: ${sourceOfDefault({ default: tags.train })},\n`)
        body += `/** What \`train\` takes if they are left out. */\nexport const TRAIN_CONFIG_DEFAULTS = {\n${values.join('')}} as const\n\n`
      }
    }
  }
  const imports = [...uses].map(([file, names]) => {
    const list = [...names]
    const types = list.every((item) => item.startsWith('type '))
    const text = (types ? list.map((item) => item.slice(5)) : list).join(', ')
    // The server imports the public API alone.
    const isOfServer = out.startsWith('src/serve/') && file === 'src/model/source-values.ts'
    const source = isOfServer ? 'src/api/parts/entry.ts' : file
    return `import ${types ? 'type ' : ''}{ ${text} } from '${relative(out, source)}'\n`
  })
  return `${HEAD}${imports.join('')}\n${body}`
}

/** The source of a default. */
function sourceOfDefault(tags) {
  if (tags.default === undefined) return 'undefined'
  const text = tags.default.replaceAll('`', '')
  const isText = !/^(-?\d[\d.e+-]*|true|false|null|\[\]|\{\})$/.test(text)
  return isText ? quoted(text) : text
}

/** Makes the help of an option from its first paragraph. Names of options in the same table become flags. */
function helpOf({ about, tags }, names) {
  const flag = (name) => `--${name.replaceAll(/[A-Z]/g, (letter) => `-${letter.toLowerCase()}`)}`
  return (tags.help ?? about)
    .split(/\n\s*\n/)[0]
    .replaceAll(/\s+/g, ' ')
    .replaceAll(/\{@link (\w+) ?\}/g, '$1')
    .replaceAll(/`(?:config\.)?(\w+)(?:: '?([^'`]*)'?)?`/g, (span, name, value) => {
      if (!names.includes(name)) return span
      return value === undefined || value === 'true' ? flag(name) : `${flag(name)} ${value}`
    })
    .replaceAll('`', '')
    .replaceAll(/(\w)'(\w)/g, '$1’$2')
    .replace(/\.? Default false\.$/, '')
    .replace(/\.$/, '')
    .replaceAll(/ \([^()]*arXiv[^()]*\)/g, '')
    .replace(/^([A-Z](?=[a-z]+ )|A(?= ))/, (letter) => letter.toLowerCase())
}

/** The command line's table: how each option is written, and its help. */
function flagFile() {
  const parts = []
  for (const files of Object.values(TABLES)) {
    for (const [file, interfaces] of Object.entries(files)) {
      for (const name of interfaces.filter((candidate) => FLAGS.includes(candidate))) {
        const members = membersOf(file, name)
        const names = members.map((member) => member.name)
        const entries = members.flatMap((member) => {
          const { form: formOfKind, words = wordsIn(WORDS[`${member.owner}.${member.name}`]) } = kindOf(member)
          const form = FORMS[`${member.owner}.${member.name}`] ?? formOfKind
          if (form === undefined) return []
          const { tags } = member
          const fallback = tags.train ?? tags.default
          const fields = [
            `form: '${form}'`,
            `about: ${quoted(helpOf(member, names))}`,
            ...(tags.range === undefined ? [] : [`range: ${quoted(tags.range)}`]),
            ...(words?.length > 0 ? [`words: [${words.map(quoted).join(', ')}]`] : []),
            ...(['false', '{}', '[]', undefined].includes(fallback)
              ? []
              : [`fallback: ${quoted(fallback.replaceAll('`', ''))}`]),
            ...(tags.flag === undefined ? [] : [`placeholder: ${quoted(tags.flag)}`]),
            ...(member.isRequired ? ['isRequired: true'] : []),
          ]
          return [`    ${member.name}: { ${fields.join(', ')} },\n`]
        })
        parts.push(`  ${name}: {\n${entries.join('')}  },\n`)
      }
    }
  }
  return `${HEAD}export const FLAGS = {\n${parts.join('')}} as const\n`
}

const made = {
  ...Object.fromEntries(Object.entries(TABLES).map(([out, files]) => [out, tableFile(out, files)])),
  'src/app/cli/gen/options.ts': flagFile(),
}

const isCheck = process.argv.includes('--check')
const stale = []
for (const [out, text] of Object.entries(made)) {
  const file = path.join(root, out)
  if (existsSync(file) && readFileSync(file, 'utf8') === text) continue
  stale.push(out)
  if (isCheck) continue
  mkdirSync(path.dirname(file), { recursive: true })
  writeFileSync(file, text)
}
if (isCheck && stale.length > 0) {
  console.error(`Not up to date: ${stale.join(', ')}. Run node scripts/generate/options.mjs`)
  process.exitCode = 1
} else console.log(stale.length === 0 ? 'All tables are up to date' : `Wrote ${stale.join(', ')}`)
