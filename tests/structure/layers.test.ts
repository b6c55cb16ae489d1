// The districts of src/: which may import which, without circles, and where Node and ONNX Runtime may be named.

import { existsSync } from 'node:fs'
import { join } from 'node:path'
import { describe, expect, it } from 'vitest'
import { filesIn, importsOf, root, staticImportsOf, textOf } from './project.js'

/** district → the districts that it imports, besides itself. It is the same table as in ARCHITECTURE.md. */
const DISTRICTS: Record<string, readonly string[]> = {
  core: [],
  files: ['core'],
  onnx: ['core'],
  lora: ['core', 'files'],
  model: ['core', 'files', 'lora', 'onnx'],
  run: ['core', 'lora', 'model', 'onnx'],
  merge: ['core', 'files', 'lora', 'model', 'onnx'],
  train: ['core', 'files', 'lora', 'model', 'onnx', 'run'],
  api: ['core', 'files', 'lora', 'merge', 'model', 'onnx', 'run', 'train'],
  serve: ['api', 'core'],
  app: ['api', 'core', 'files', 'lora', 'model', 'onnx', 'run', 'serve'],
}

/** The file of each district that a reader opens first. */
const MAIN_FILES: Record<keyof typeof DISTRICTS, string> = {
  core: 'base/errors.ts',
  files: 'safetensors.ts',
  onnx: 'onnx.ts',
  lora: 'adapter.ts',
  model: 'model-folder.ts',
  run: 'session.ts',
  merge: 'merge.ts',
  train: 'train.ts',
  api: 'index.ts',
  serve: 'server.ts',
  app: 'cli/program.ts',
}

/** The rooms that import less than their district may. */
const ROOMS: Record<string, readonly string[]> = {
  'core/base': [],
  'core/kernels': ['core/base'],
  'core/linalg': ['core/base', 'core/kernels'],
  'onnx/format': ['core/base'],
  'lora/peft': ['core/base', 'core/linalg', 'files', 'lora'],
  'model/families': [],
  'model/text': ['core/base'],
  'model/images': ['core/base'],
  'api/report': [],
  // Commands use the public API and two other rooms: `core/base`, for errors and for guesses at misspelled words, and
  // `api/report`, for the pages of runs.
  'app/cli': ['api', 'core/base', 'serve', 'app/openai'],
  'app/openai': ['api', 'core/base', 'files/io', 'serve'],
}

/** Where `node:` modules and onnxruntime-node may be imported: never reached from src/api/index.ts. */
const NODE_ONLY = /^src\/(app\/cli\/|api\/node\.ts$|(.*\/)?node\/)/

const files = filesIn('src', ['.ts'])
const imports = files.flatMap(importsOf)
const districtOf = (path: string) => path.split('/')[1]
const arrow = ({ from, specifier }: { from: string; specifier: string }) => `${from} → ${specifier}`

describe('districts of src/', () => {
  it('finds the sources', () => {
    expect(files).toContain('src/api/index.ts')
    expect(files.length).toBeGreaterThan(20)
  })

  it('has eleven districts and nothing else', () => {
    expect([...new Set(files.map(districtOf))].sort()).toEqual(Object.keys(DISTRICTS).sort())
  })

  it('has a table of contents at the head of each district, which names all of its folders but node/', () => {
    for (const [district, main] of Object.entries(MAIN_FILES)) {
      const [, lines] = new RegExp(`^// The files of src/${district}/, in reading order:\n((?://   .*\n)+)`, 'm').exec(
        textOf(`src/${district}/${main}`),
      )!
      const named = lines
        .trim()
        .split('\n')
        .flatMap((line) => line.slice('//   '.length).split(/ {2,}/)[0].split(', '))
      const missing = named.filter((name) => !existsSync(join(root, 'src', district, name)))
      expect(missing, `src/${district}/${main}`).toEqual([])
      const inside = files.filter((path) => districtOf(path) === district).map((path) => path.split('/').slice(2))
      const folders = new Set(inside.filter(({ length }) => length > 1).map(([folder]) => `${folder}/`))
      const unnamed = [...folders].filter(
        (folder) => !named.some((name) => name.startsWith(folder) || folder === 'node/'),
      )
      expect(unnamed, `to name at the head of src/${district}/${main}`).toEqual([])
    }
  })

  it('knows neither LoRA nor models in onnx/: only graphs', () => {
    const own = files.filter((path) => districtOf(path) === 'onnx')
    // WebGPU has adapters too.
    const textsOf = (path: string) => textOf(path).replace('RequestAdapterStatus', '')
    expect(own.filter((path) => /lora\b|adapt|peft|fine-?tun/i.test(textsOf(path)))).toEqual([])
    // In messages, a model is only an ONNX model: the file.
    const messages = own.flatMap((path) => {
      return [...textOf(path).matchAll(/'[^'\n]* [^'\n]*'|`[^`\n]* [^`\n]*`/g)].map(([message]) => message)
    })
    expect(messages.length).toBeGreaterThan(100)
    expect(messages.filter((message) => /(?<!ONNX )\bmodels?\b/.test(message))).toEqual([])
  })

  it('keeps facts about a model on the model, not in a map beside it', () => {
    const beside =
      /^(?:export )?const \w+ = new (?:Weak)?(?:Map|Set)<(?:OnnxModel|Model|ModelProto|GraphProto|Graph)\b/m
    expect(files.filter((path) => beside.test(textOf(path)))).toEqual([])
  })

  it('imports from the districts that the table names, and no others', () => {
    const table = textOf('ARCHITECTURE.md').matchAll(/^\| `(\w+)\/` \|.*\| ([^|]+) \|$/gm)
    const written = Object.fromEntries([...table].map(([, district, list]) => [district, list.split(', ').sort()]))
    for (const [district, allowed] of Object.entries(DISTRICTS)) {
      const leaving = imports.filter(({ from, to }) => districtOf(from) === district && to !== undefined)
      const wrong = leaving.filter(({ to }) => ![district, ...allowed].includes(districtOf(to as string)))
      expect(wrong.map(arrow)).toEqual([])
      const used = new Set(leaving.map(({ to }) => districtOf(to as string)))
      expect(
        allowed.filter((other) => !used.has(other)),
        `${district} imports`,
      ).toEqual([])
      expect(written[district], `ARCHITECTURE.md: ${district}`).toEqual(
        allowed.length === 0 ? ['nothing'] : [...allowed],
      )
    }
  })

  it('keeps rooms to what they need', () => {
    const isIn = (path: string, room: string) => path.startsWith(`src/${room}/`)
    for (const [room, allowed] of Object.entries(ROOMS)) {
      const wrong = imports.filter(
        ({ from, to }) => isIn(from, room) && to !== undefined && ![room, ...allowed].some((other) => isIn(to, other)),
      )
      expect(wrong.map(arrow)).toEqual([])
    }
  })

  it('imports files that exist, inside src/', () => {
    const wrong = imports.filter(({ to }) => to !== undefined && !(to.startsWith('src/') && existsSync(join(root, to))))
    expect(wrong.map(arrow)).toEqual([])
  })

  it('has no circles between files, imports of types and generated files included', () => {
    const done = new Set<string>()
    const circles: string[] = []
    const visit = (path: string, trail: string[]): void => {
      if (trail.includes(path)) circles.push([...trail.slice(trail.indexOf(path)), path].join(' → '))
      if (done.has(path) || trail.includes(path)) return
      for (const { to } of importsOf(path)) if (to?.startsWith('src/')) visit(to, [...trail, path])
      done.add(path)
    }
    for (const path of files) visit(path, [])
    expect([...done]).toContain('src/api/gen/options.ts')
    expect(circles).toEqual([])
  })

  it('names no task outside of its file and the table', () => {
    const tasks = files.filter((path) => path.startsWith('src/train/tasks/'))
    const named = tasks
      .map((path) => path.split('/')[3].replace('.ts', ''))
      .filter((name) => textOf('src/train/tasks/tasks.ts').includes(`./${name}.js')`))
    expect(named).toContain('causal-lm')
    const blind = files.filter((path) =>
      /^src\/(onnx|model\/(?!heads|families)|train\/(?!tasks|loop|evaluate|handoff))/.test(path),
    )
    // A kind of part may have the name of a task, so what asks for kinds of parts is left out.
    const asksForParts = /\b(parts|partsOf|requireHandled)\([^)]*\)|\bkind( [!=]==|:) '[\w-]+'|\bPartOf<'[\w-]+'>/g
    const about = (path: string) => textOf(path).replace(asksForParts, '')
    for (const name of named) {
      const naming = new RegExp(`['"/]${name}(\\.js)?['"]`)
      expect(blind.filter((path) => naming.test(about(path)))).toEqual([])
    }
    const types = tasks.flatMap((path) =>
      [...textOf(path).matchAll(/^ {2}peftType: '(\w+)',$/gm)].map(([, type]) => type),
    )
    expect(types).toContain('CAUSAL_LM')
    const namingType = new RegExp(`'(${types.join('|')})'`)
    expect(blind.filter((path) => namingType.test(textOf(path)))).toEqual([])
  })

  it('starts runs in one function, and walks from it to AdamW as ARCHITECTURE.md says', () => {
    const worksOut = /^import [^']*\b(withDefaultRate|chooseCopies|newAdapter|joinGraphs|findTargets)\b/m
    const using = files.filter((path) => /^src\/(api|train|serve)\//.test(path) && worksOut.test(textOf(path)))
    // What only evaluates or checks records joins graphs, too.
    expect(using.filter((path) => !/\/(evaluate-adapters|check|search)\.ts$|\/search\//.test(path))).toEqual([
      'src/train/start-run.ts',
    ])
    const opening = files.filter((path) => /\bLearner\.open\(/.test(textOf(path)))
    expect(opening).toEqual([
      ...['src/train/evaluate/evaluate-adapters.ts', 'src/train/loop/distill.ts', 'src/train/loop/trainer.ts'],
      'src/train/train.ts',
    ])
    const walk = [...textOf('ARCHITECTURE.md').matchAll(/^\d+\. `(src\/[^`]+\.ts)`/gm)].map(([, path]) => path)
    expect(walk[0]).toBe('src/api/verbs.ts')
    expect(walk.at(-1)).toBe('src/train/engine/optimizer.ts')
    expect(walk.length).toBeLessThanOrEqual(10)
    const reached = new Set([walk[0]])
    for (const path of walk) {
      expect(reached).toContain(path)
      for (const { to } of importsOf(path)) if (to !== undefined) reached.add(to)
    }
  })

  it('places adapters in model/place alone', () => {
    // Nothing else looks for the places of parts, or reads values to find out what is tied or a copy.
    const walks =
      'placeLayers|placeExperts|placesOf|findConvolutions|certainBias|trainableTensor|matchLayers|partsForGraph'
    const importing = new RegExp(`^import [^']*\\b(${walks})\\b`, 'm')
    // Sessions make the inputs of adapters in a copy of the graph, whose nodes are others.
    const isOwn = (path: string) => /^src\/model\/(place|match)\/|\/inject\/other-sites/.test(path)
    const callers = files.filter((path) => importing.test(textOf(path)))
    expect(callers).toContain('src/model/place/place.ts')
    expect(callers.filter((path) => !isOwn(path))).toEqual([])
    const pure = ['place', 'linears', 'experts', 'tensors', 'placement'].map((name) => `src/model/place/${name}.ts`)
    const changing = /\b(async|await|Promise|addInitializer|setInput|putBehind|prune|Builder)\b/
    expect(pure.filter((path) => changing.test(textOf(path)))).toEqual([])
  })

  it('names the types that functions return', () => {
    const using = files.filter((path) => textOf(path).includes('Awaited<ReturnType<'))
    expect(using).toEqual([])
  })

  it('names node: modules only in Node files', () => {
    const wrong = imports.filter(({ from, specifier }) => specifier.startsWith('node:') && !NODE_ONLY.test(from))
    expect(wrong.map(arrow)).toEqual([])
  })

  it('reaches no Node file from src/api/index.ts, by any import', () => {
    const reached = new Set<string>()
    const visit = (path: string): void => {
      if (reached.has(path)) return
      reached.add(path)
      for (const { from, to } of imports) if (from === path && to !== undefined) visit(to)
    }
    visit('src/api/index.ts')
    expect([...reached].filter((path) => NODE_ONLY.test(path))).toEqual([])
  })

  it('opens without what graphs and texts need, and shows help without what takes paths', () => {
    /** Returns everything that loads with a file: paths of our modules, and names of packages. */
    const loadedWith = (path: string, loaded = new Set<string>()): Set<string> => {
      if (loaded.has(path)) return loaded
      loaded.add(path)
      for (const { specifier, to } of staticImportsOf(path)) {
        if (to === undefined) loaded.add(specifier)
        else loadedWith(to, loaded)
      }
      return loaded
    }
    const entry = [...loadedWith('src/api/node.ts')]
    expect(entry).toContain('src/lora/layer.ts')
    expect(
      entry.filter((path) => /^(@|src\/(model\/(?!source-values)|lora\/peft|onnx\/format)\/?)/.test(path)),
    ).toEqual([])
    const commands = files.filter((path) => /^src\/app\/cli\/[^/]*$/.test(path))
    const shown = new Set<string>()
    for (const path of commands) loadedWith(path, shown)
    expect(shown).toContain('src/api/index.ts')
    expect(shown).not.toContain('src/api/node.ts')
  })

  it('builds the page from the public API alone', () => {
    const page = filesIn('web/src', ['.ts']).flatMap(importsOf)
    const packages = page.filter(({ specifier }) => !specifier.startsWith('./')).map(({ specifier }) => specifier)
    expect(packages).toContain('lowrank')
    expect(packages.filter((name) => !/^(lowrank|fflate|onnxruntime-web\/.*\?url)$/.test(name))).toEqual([])
  })

  it('builds the server from the public API alone', () => {
    const { exports } = JSON.parse(textOf('package.json'))
    const entries = [...JSON.stringify(exports).matchAll(/"\.\/dist\/(api\/[\w/]+)\.js"/g)].map(
      ([, name]) => `src/${name}.ts`,
    )
    expect(entries).toContain('src/api/parts/entry.ts')
    const isPublic = (path: string) => /^src\/(serve|core\/base)\//.test(path) || entries.includes(path)
    const wrong = imports.filter(({ from, to }) => from.startsWith('src/serve/') && to !== undefined && !isPublic(to))
    expect(wrong.map(arrow)).toEqual([])
  })

  it.each([
    ['How a chat is answered', 'src/serve/node/listen.ts'],
    ['How a merge runs', 'src/api/merge.ts'],
  ])('is told in at most 20 files: %s', (title, first) => {
    const [, steps] = new RegExp(`^## ${title}\n([^]*?)^## `, 'm').exec(textOf('ARCHITECTURE.md'))!
    const named = [...steps.matchAll(/^\d\. .*$/gm)].flatMap(([line]) => [...line.matchAll(/`(\w+\/[\w/-]+)`/g)])
    const walk = [...new Set(named.map(([, name]) => `src/${name}.ts`))].filter((path) => path !== 'src/model/place.ts')
    expect(walk[0]).toBe(first)
    expect(walk.filter((path) => !existsSync(join(root, path)))).toEqual([])
    expect(walk.length).toBeGreaterThan(6)
    expect(walk.length).toBeLessThanOrEqual(20)
  })

  it('keeps the forms of the server below its queue and its routes', () => {
    const forms = imports.filter(({ from }) => from.startsWith('src/serve/forms/'))
    expect(forms.length).toBeGreaterThan(10)
    const up = /^src\/serve\/(node\/|routes|handler|dispatch|serving|gate)/
    expect(forms.filter(({ to }) => to !== undefined && up.test(to)).map(arrow)).toEqual([])
    const served = imports.filter(
      ({ from, to }) => /^src\/serve\/routes\//.test(from) && /\/(routes|dispatch|handler)\.ts$/.test(to ?? ''),
    )
    expect(served.map(arrow)).toEqual([])
  })

  it('names Node built-ins with their prefix', () => {
    const bare =
      /^(assert|buffer|child_process|crypto|fs|module|os|path|perf_hooks|process|stream|url|util|worker_threads)(\/|$)/
    expect(imports.filter(({ specifier }) => bare.test(specifier)).map(arrow)).toEqual([])
  })

  it('imports ONNX Runtime only in src/onnx/runtime', () => {
    const wrong = imports.filter(
      ({ from, specifier }) => specifier.startsWith('onnxruntime-') && !from.startsWith('src/onnx/runtime/'),
    )
    expect(wrong.map(arrow)).toEqual([])
  })

  it('installs every package that it imports, and imports every package that it installs', () => {
    const { dependencies, peerDependencies } = JSON.parse(textOf('package.json'))
    const packages = imports
      .map(({ specifier }) => specifier)
      .filter((specifier) => !/^(\.|node:|onnxruntime-)/.test(specifier))
      .map((specifier) =>
        specifier
          .split('/')
          .slice(0, specifier.startsWith('@') ? 2 : 1)
          .join('/'),
      )
    // ONNX Runtime and sharp are looked for when they are needed.
    const peers = Object.keys(peerDependencies).filter((name) => !/^(onnxruntime-|sharp$)/.test(name))
    expect([...new Set(packages)].sort()).toEqual([...Object.keys(dependencies), ...peers].sort())
    expect(Object.keys(peerDependencies).filter((name) => name in dependencies)).toEqual([])
  })
})

/** Files that load other modules later with `import()`, by reason. A path that ends in / is a folder. */
const LOADING = {
  verbs: [
    'src/api/',
    'src/app/cli/',
    'src/api/node.ts',
    'src/api/handoff.ts',
    'src/app/transformers/entry.ts',
    'src/run/model-session.ts',
  ],
  // Chats, schemas, stop strings, encoders, and pictures. A page that only continues texts does not load them.
  prompts: [
    ...['src/run/generate/generate.ts', 'src/run/generate/prompts.ts', 'src/run/generate/text-graph.ts'],
    ...['src/run/generate/text-batch.ts', 'src/run/engine.ts', 'src/train/rows/examples.ts'],
  ],
  // Tasks, formats of adapters and of data, and names of checkpoints.
  tables: [
    ...['src/train/tasks/tasks.ts', 'src/train/tasks/grpo.ts', 'src/train/tasks/distill.ts'],
    ...['src/merge/exchange/formats.ts', 'src/files/data/read-files.ts'],
    ...['src/files/data/read-rows.ts', 'src/merge/open.ts', 'src/merge/plan/names/tables.ts', 'src/lora/peft/files.ts'],
  ],
  // Parts that most adapters do not have, messages of graphs that cannot be opened, attention of long texts, Dense
  // modules, and folders of runs, which pages seldom have.
  rare: [
    ...[
      'src/lora/peft/open.ts',
      'src/lora/peft/tensors.ts',
      'src/onnx/runtime/onnxruntime.ts',
      'src/train/graph/passes.ts',
    ],
    ...['src/model/sentence-modules.ts', 'src/train/saved/run-place.ts'],
  ],
  // Parts that run here or in a worker, and parts for Node or for browsers.
  platform: [
    ...['src/api/node/platform.ts', 'src/onnx/runtime/host.ts', 'src/onnx/runtime/load.ts', 'src/run/graph-session.ts'],
    ...[
      'src/train/training-loop.ts',
      'src/train/engine/sessions.ts',
      'src/train/learner.ts',
      'src/api/node/reward-worker.ts',
    ],
  ],
  peers: [
    'src/app/openai/node/unpack.ts',
    ...['src/app/transformers/module.ts', 'src/files/data/parquet.ts', 'src/model/images/node/decode.ts'],
    ...['src/model/text/compiled-template.ts', 'src/model/text/chat-template.ts', 'src/run/schemas/grammars.ts'],
    ...['src/serve/spans.ts', 'src/serve/jobs/node/training-in.ts'],
    ...['src/serve/store/node/sqlite-thread.ts', 'src/serve/store/node/beside.ts'],
  ],
}

it('loads parts later at verbs, tables, platforms and peers alone', () => {
  const loading = filesIn('src', ['.ts']).filter((path) =>
    /^(?!\s*(\*|\/\/)).*(?<!typeof )\bimport\((?!'[^']*'\)\.[A-Z])/m.test(textOf(path)),
  )
  const listed = Object.values(LOADING).flat()
  const isIn = (path: string, place: string) => (place.endsWith('/') ? path.startsWith(place) : path === place)
  expect(loading.filter((path) => !listed.some((place) => isIn(path, place)))).toEqual([])
})
