// Every promise of SECURITY.md, of docs/serving.md and of docs/reliability.md has a test. Each threat names existing
// tests, fuzz targets or stress campaigns; for the pages, the table below names the test of each sentence.

import { existsSync } from 'node:fs'
import { expect, it } from 'vitest'
import { filesIn, textOf } from './project.js'

const threats = [...textOf('SECURITY.md').matchAll(/^(\d+)\. .*$/gm)].map(([line]) => line)
const named = (text: string) => [...text.matchAll(/`([^`]+)`/g)].map(([, name]) => name)

it('each threat of SECURITY.md names a test or a target that is there', () => {
  const scripts = [...filesIn('scripts/fuzz', ['.mjs']), ...filesIn('scripts/stress', ['.mjs'])].map(textOf).join('\n')
  expect(threats.length).toBeGreaterThan(20)
  for (const threat of threats) {
    const paths = named(threat).filter((name) => name.startsWith('tests/'))
    expect(
      paths.filter((path) => !existsSync(path)),
      threat,
    ).toEqual([])
    const targets = [...threat.matchAll(/`(?:fuzz|stress)`: ([^.]*)/g)].flatMap(([, list]) => named(list))
    expect(paths.length + targets.length, threat).toBeGreaterThan(0)
    expect(
      targets.filter((target) => !scripts.includes(target)),
      threat,
    ).toEqual([])
  }
})

const NEWER = 'tests/serve/newer-fields.test.ts'

/** Words of docs/serving.md, and the file and words that show them: a test's name, or the constant of a number. */
const SERVING: readonly [promise: string, file: string, shows: string][] = [
  // Routes
  ['lists the base and its adapters', 'tests/serve/handler.test.ts', 'are listed, loaded by their names'],
  ['they are put into the system message in', 'tests/serve/tool-prompt.test.ts', 'gets them in the system message'],
  ['Calls come back parsed', 'tests/model/text/call-reader.test.ts', 'reads Hermes’ and Llama’s forms'],
  ['answers a chat, also as a stream', 'tests/serve/handler.test.ts', 'answer chats, with scores, whole and in pieces'],
  ["the same in OpenAI's newer form", 'tests/serve/handler.test.ts', 'answer as responses, whole and in events'],
  ['`previous_response_id` goes on', 'tests/serve/newer-fields.test.ts', 'go on after an earlier one, by its id'],
  ['reads or removes a response', 'tests/serve/newer-fields.test.ts', 'are read and removed by the key that made them'],
  ["a chat in Anthropic's form", 'tests/serve/messages.test.ts', 'are those of OpenAI’s route, whole and as events'],
  [
    "`/v1/models` answers in Anthropic's form too",
    'tests/serve/messages.test.ts',
    'count tokens, and have Anthropic’s errors and models',
  ],
  ['texts or chats as tokens, and back', 'tests/serve/messages.test.ts', 'tokens and texts are those of the tokenizer'],
  [
    'if the model has a single label, its score',
    'tests/serve/messages.test.ts',
    'by the label of a model that has one',
  ],
  [
    'and otherwise the cosine of vectors',
    'tests/serve/messages.test.ts',
    'documents are ranked, and pairs scored, by vectors',
  ],
  ['continues a text or token ids', 'tests/serve/handler.test.ts', 'come several for a prompt, and for token ids'],
  ['`echo` with `logprobs`', 'tests/serve/handler.test.ts', 'with echo carry the scores of the prompt'],
  // Names of others
  [
    '`--default-model NAME` answers every name',
    'tests/serve/default-model.test.ts',
    'answers in all forms, and the answer',
  ],
  ['and all others, stay a 404', 'tests/serve/default-model.test.ts', 'leaves fine-tuned and misspelt names alone'],
  // Ollama's form
  [
    "[Ollama's form](#ollamas-form)",
    'tests/serve/ollama.test.ts',
    'are lines by default, and one object without a stream',
  ],
  ["take the server's address in the place of", 'tests/serve/ollama.slow.test.ts', 'ollama of PyPI'],
  [
    'stream lines of JSON by default',
    'tests/serve/ollama.test.ts',
    'are lines by default, and one object without a stream',
  ],
  ['A call of a tool comes as a whole', 'tests/serve/ollama.test.ts', 'send each call as a whole, between words'],
  [
    'The names in `options` are those of Ollama',
    'tests/serve/ollama.test.ts',
    'take the options of Ollama, and refuse others',
  ],
  [
    'loses its earliest turns, unless',
    'tests/serve/ollama.test.ts',
    'lose their earliest messages if they are too long',
  ],
  ['Thoughts of a model that thinks', 'tests/serve/ollama.test.ts', 'set variables of the template'],
  ['tell of the base and the adapters', 'tests/serve/ollama.test.ts', 'models are listed, shown and pulled'],
  ['`/api/pull` of a model that is here', 'tests/serve/ollama.test.ts', 'models are listed, shown and pulled'],
  ['`/api/embed` and `/api/embeddings` give', 'tests/serve/ollama.test.ts', 'vectors are those of the session'],
  ['Keys go into the header', 'tests/serve/ollama.test.ts', 'keys, hosts and origins count as for other routes'],
  ['reads "Ollama is running"', 'tests/serve/ollama.test.ts', 'GET and HEAD / tell clients'],
  ['gives vectors of texts', 'tests/serve/clients.slow.test.ts', 'gets vectors, which it asks for in base64'],
  ["gives labels, in vLLM's form", 'tests/serve/messages.test.ts', "await ask(all, '/classify'"],
  ['They are off without `--allow-loading`', 'tests/serve/handler.test.ts', 'are not loaded where that is off'],
  ["[OpenAI's fine-tuning]", 'tests/serve/jobs/client.slow.test.ts', 'uploads, trains, watches, uses, cancels'],
  ['`/ready` gives 503', 'tests/serve/operators.test.ts', 'say that a server loads, is ready, drains'],
  [
    '`--metrics-port` also serves it on a port of its own',
    'tests/serve/operators.test.ts',
    'metrics have a port of their own',
  ],
  ["with vLLM's names", 'tests/serve/handler.test.ts', 'metrics carry vLLM’s names'],
  [
    '`model` is the name of the base',
    'tests/serve/handler.test.ts',
    'for the base, an adapter by both names, and a mix',
  ],
  ['a request mixes adapters', 'tests/serve/handler.test.ts', 'for the base, an adapter by both names, and a mix'],
  [
    '`--served-model-name`, which you can repeat',
    'tests/serve/operators.test.ts',
    'find the base by each of its names',
  ],
  ['`--config FILE` (YAML or JSON)', 'tests/app/cli/serve.test.ts', 'takes options from a file'],
  [
    '`/v1/embeddings` needs an encoder',
    'tests/serve/handler.test.ts',
    '%s of a model that continues texts names the model',
  ],
  // Loading adapters at run time
  [
    'an unknown `model` is looked for',
    'tests/serve/operators.test.ts',
    'load an unknown model of the folder only if they are admins’',
  ],
  [
    'Afterwards, all callers can use it',
    'tests/serve/operators.test.ts',
    'load an unknown model of the folder only if they are admins’',
  ],
  [
    'also loads public repositories',
    'tests/serve/operators.test.ts',
    'come by the load route alone, without the token',
  ],
  ['They can have up to `--max-download` bytes', 'tests/serve/operators.test.ts', 'have a limit of bytes'],
  ['Links that lead out', 'tests/serve/attacks.test.ts', 'with links that lead out are not read'],
  ['Different spellings of one folder', 'tests/serve/attacks.test.ts', 'have one slot, however they are spelled'],
  ['the second gets status 400', 'tests/serve/attacks.test.ts', 'of one name from four folders at once'],
  ['share its loading', 'tests/serve/attacks.test.ts', 'have one slot, however they are spelled, at once'],
  ['Above `--max-adapters`', 'tests/serve/handler.test.ts', 'and the least used leaves'],
  ['once the requests that use it have ended', 'tests/serve/handler.test.ts', 'stay for the requests that have them'],
  ['loading an adapter does not open it again', 'tests/serve/handler.test.ts', 'and new ones of the same name come'],
  ['Declare slots for other parts', 'tests/serve/handler.test.ts', 'with parts that the server was not opened for'],
  ['`--allow dora,biases', 'tests/serve/handler.test.ts', "allow: ['lora', 'dora']"],
  ['An adapter that needs more', 'tests/serve/handler.test.ts', 'get status 400'],
  // The page
  ['two side by side if you like', 'tests/serve/chat-page.slow.test.ts', 'asks two models by keyboard'],
  ['The page shows tokens a second', 'tests/serve/chat-page.slow.test.ts', 'stops an answer, and shows errors as text'],
  ['loads nothing from other machines', 'tests/serve/chat-page.slow.test.ts', 'load nothing from elsewhere'],
  ['keeps a key only in its tab', 'tests/serve/chat-page.slow.test.ts', 'asks for the key, keeps it in the tab'],
  ['`--no-page` switches it off', 'tests/app/cli/serve.test.ts', 'has no page if it is told so'],
  // Fields
  ['marks a field that it requires', 'tests/serve/handler.test.ts', "[{ max_tokens: 4 }, 'prompt', /missing/]"],
  ['Any other field gets a 400', 'tests/serve/handler.test.ts', '%j names the field'],
  ["calls match the tools' schemas", 'tests/serve/fields.test.ts', 'are forced by tool_choice'],
  ['Arguments are streamed', 'tests/serve/fields.test.ts', 'are forced on responses too, with arguments as events'],
  // JSON that fits a schema
  ['each answer is JSON', 'tests/run/schemas.test.ts', 'every text parses and fits'],
  ['the answer is closed', 'tests/run/endings.test.ts', 'end in time, and fit'],
  ['there is no line break', 'tests/run/schema-sets.test.ts', 'no line break outside strings'],
  ['This needs the package', 'tests/run/schemas.test.ts', 'describe.skipIf(!isInstalled)'],
  ['does the same', 'tests/run/schemas.test.ts', 'generate({ schema })'],
  ['These keywords are supported', 'tests/run/schema-sets.test.ts', '30 schemas of %s'],
  ['`oneOf` whose branches exclude each other', 'tests/run/schema-sets.test.ts', 'branches that exclude each other'],
  ['`format` (date, time', 'tests/run/schema-sets.test.ts', 'formats, with the numbers of days'],
  ['Others, such as `not`', 'tests/run/schema-sets.test.ts', "['schema.not', { not: { type: 'string' } }]"],
  ["Properties come in the schema's order", 'tests/run/schemas.test.ts', "'kind,left'"],
  ['A schema can have up to 32 kB', 'tests/run/schemas.test.ts', '/too deep/'],
  ['may add up to 1,000', 'src/run/schemas/schemas.ts', '{ bytes: 32_768, depth: 32, parts: 512, counts: 1000'],
  // What was read
  ['`--prefix-cache BYTES`', 'tests/run/prefix-store.test.ts', 'keeps within its bytes what was used last'],
  ['shares its first 32 or more tokens', 'tests/run/prefix-store.test.ts', 'reads the next turn alone'],
  [
    'uses the same adapters with the same weights',
    'tests/run/prefix-store.test.ts',
    'shares nothing with other adapters, weights and scopes',
  ],
  ['cached_tokens` says', 'tests/serve/handler.test.ts', 'are read once, and not shared by callers of other keys'],
  [
    'Callers with different API keys share nothing',
    'tests/serve/handler.test.ts',
    'not shared by callers of other keys',
  ],
  [
    'the caches of an adapter are removed with it',
    'tests/run/prefix-store.test.ts',
    'nor with an adapter that came again',
  ],
  ['prompts with pictures are always read whole', 'tests/run/picture-texts.test.ts', 'expect(cachedTokens).toBe(0)'],
  // Keys
  ['Keys have names', 'tests/serve/operators.test.ts', 'are read with names, priorities and rights'],
  ['`--api-key alice=SECRET`', 'tests/app/cli/serve.test.ts', 'keys of several kinds'],
  [
    'waiting requests of keys with lower numbers go first',
    'tests/serve/operators.test.ts',
    'go to the lowest priority',
  ],
  ['With the field `priority`', 'tests/serve/operators.test.ts', 'come later by the field priority, but not sooner'],
  [
    'Keys of equal priority take turns',
    'tests/serve/operators.test.ts',
    'are there for a key though another has filled the queue',
  ],
  ['`--admin-key` gives a key', 'tests/serve/operators.test.ts', '$method $path for $who'],
  ['only admin keys load and remove adapters', 'tests/serve/operators.test.ts', '$method $path for $who'],
  ['Each answer has an `x-request-id`', 'tests/serve/operators.test.ts', 'have an id in the answer and the log'],
  ['never a word of a prompt', 'tests/serve/operators.test.ts', 'the log has no content'],
  ['each request is a span', 'tests/serve/clients.slow.test.ts', 'gets a span for each request'],
  ['`x-request-timeout` (seconds) says so', 'tests/serve/operators.test.ts', 'end at the deadline of their header'],
  ['A stream sends its headers', 'tests/serve/operators.test.ts', 'a stream sends its headers and comments before'],
  ['after half a second at the latest', 'src/serve/http.ts', 'HEADERS_MS = 500'],
  ['a comment every 10 seconds', 'src/serve/http.ts', 'COMMENT_MS = 10_000'],
  // Safety
  ['The server listens on 127.0.0.1', 'tests/app/cli/serve.test.ts', '127\\.0\\.0\\.1'],
  ['web pages of other origins', 'tests/serve/handler.test.ts', 'of strangers are refused: a page of another origin'],
  ['set `LOWRANK_API_KEY`', 'tests/app/cli/serve.test.ts', 'takes its key from the environment'],
  ['Pictures come as data URLs', 'tests/serve/handler.test.ts', "image_url: { url: 'http://127.0.0.1/a.png' }"],
  [
    'Error messages do not show paths',
    'tests/serve/attacks.test.ts',
    'that are damaged are refused without a path of the server',
  ],
  ['Queues and answers have limits', 'tests/serve/handler.test.ts', 'maxRunning: 1, maxQueue: 0'],
  ['A request body can have', 'tests/serve/attacks.test.ts', 'bodies are bounded'],
  ['8 MiB, 262,144 JSON values', 'src/serve/bodies/inbox.ts', 'MAX_VALUES = 1 << 18'],
  ['A request body can have 8 MiB', 'src/serve/dispatch.ts', 'maxBodyBytes = 8 << 20'],
  ['2,048 texts for vectors and labels', 'tests/serve/attacks.test.ts', 'Array(2049)'],
  ['With `strict: true`, a schema with other keywords', NEWER, 'is an error with strict'],
  ['they are checked on the finished answer', NEWER, 'is checked on the finished answer'],
  ['In a stream, the last chunk has', NEWER, 'is told of in the last chunk'],
  ['Bounds are exact', 'tests/run/schema-sets.test.ts', 'at each border and beside it'],
  ['A prompt longer than the context', 'tests/serve/attacks.test.ts', 'maximum context length'],
  ['Numbers of tokens may be larger than the context', NEWER, 'may ask for more tokens than there is room for'],
  ['A prompt without room gets a 400', 'tests/serve/tool-prompt.test.ts', 'maximum context length'],
  ["If the last message of `/v1/messages` is the assistant's", NEWER, 'goes on with the beginning of an answer'],
  ['keeps each response, unless `store` is false', NEWER, 'are not kept with store: false'],
  ['Its key can go on with it', NEWER, 'by its id or by those of its items'],
  ['Responses are in memory, at most 1,000', NEWER, 'are at most 1,000 of at most 64 MiB'],
  ['leaves the earliest turns out', NEWER, 'leaves early turns out'],
  ['and a call goes with its result', NEWER, 'never splits a call from its output'],
  ['`conversation` gets a 400', NEWER, 'are those that only the maker of an answer could keep'],
  ['a word of more than 65,536 characters', 'tests/serve/attacks.test.ts', 'a word has more than 65536 characters'],
  [
    'one caller can still keep others waiting',
    'tests/serve/attacks.test.ts',
    'so that a long prompt leaves others their turn',
  ],
  ['A caller that reads nothing', 'tests/serve/attacks.test.ts', 'lose the connection if they stand still'],
  ['for 30 seconds loses the connection', 'src/serve/node/outbox.ts', 'stallMs = 30_000'],
  ['A stream ends when its caller is', 'tests/serve/attacks.test.ts', 'lose a stream that grows'],
  ['4 MiB behind', 'src/serve/http.ts', 'MAX_BEHIND = 4 << 20'],
  [
    'If all bodies that are on their way hold',
    'tests/serve/attacks.test.ts',
    'of 20 callers hold 64 MiB together: the slowest get 408',
  ],
  ['hold more than 64 MiB together', 'src/serve/dispatch.ts', 'MAX_HELD = 64 << 20'],
  [
    'A caller may leave at any moment',
    'tests/serve/left-callers.test.ts',
    'after a caller has left, on every route, at every moment',
  ],
  [
    'If all callers together have more',
    'tests/serve/attacks.test.ts',
    'hold no more memory together than the outbox allows',
  ],
  ['more than 64 MiB unread', 'src/serve/node/outbox.ts', 'maxUnread = 64 << 20'],
  [
    'the server refuses new requests with status 503',
    'tests/serve/attacks.test.ts',
    'does not wait for a body that was sent in half',
  ],
  ['one more second', 'src/serve/dispatch.ts', 'BODY_MS = 1000'],
  ['finishes answers that have begun', 'tests/app/cli/serve.test.ts', 'after SIGTERM finishes what has begun'],
  ['`--drain-seconds` (25)', 'src/serve/node/listen.ts', 'drainSeconds = 25'],
  ['A second signal ends the program at once', 'tests/app/cli/serve.test.ts', 'ends at once by a second signal'],
  ['The exit code is 0 if all answers are whole', 'tests/app/cli/serve.test.ts', 'ends after SIGTERM with %s'],
  [
    'While the model loads, the first signal',
    'tests/app/cli/serve.test.ts',
    'ends with 143 if SIGTERM comes while it loads',
  ],
  ['The process of a training job ends', 'tests/serve/jobs/orphans.test.ts', 'end if the server ends %s'],
]

const RELIABILITY: typeof SERVING = [
  ['`fuzz` for 25 seconds', '.ci/run', 'fuzz -- --seconds 25 --seed 1'],
  ['`stress` for 40 seconds', '.ci/run', 'stress -- --seconds 40 --seed 1'],
  ['within 20 seconds', 'scripts/fuzz/fuzz.mjs', 'LIMIT_MS = 20_000'],
  ['2 GiB of memory', 'scripts/fuzz/fuzz.mjs', 'LIMIT_BYTES = 2 ** 31'],
  ['more than about four `.*`', 'tests/lora/patterns/expression.test.ts', "'.*.*.*.*.*.*.*.*b'"],
  ['`(.*q.*)*`', 'tests/lora/patterns/expression.test.ts', "'(.*)*b'"],
  ['more than 4.5 seconds', 'src/onnx/runtime/host.ts', 'STOP_MS = 4500'],
  ['End such a process with a signal', 'tests/run/hung-run.slow.test.ts', 'ends at once by the second signal'],
]

/** The sentences and rows of the part of a page that says what the server does. */
function sentencesOf(page: string): string[] {
  const part = page.slice(page.indexOf('## Routes'), page.indexOf('## In your own server'))
  const lines = part.replace(/<!-- fields -->.*<!-- \/fields -->/s, '').split('\n')
  return lines
    .filter((line) => line !== '' && !/^(#|\| (route|---))/.test(line))
    .flatMap((line) => (line.startsWith('|') ? [line] : line.split(/(?<=\.) (?=[A-Z`])/)))
}

it.each([
  ['docs/serving.md', SERVING],
  ['docs/reliability.md', RELIABILITY],
])('what %s promises is in a test', (path, promises) => {
  const page = textOf(path)
  expect(promises.filter(([promise]) => !page.includes(promise))).toEqual([])
  expect(promises.filter(([, file, shows]) => !textOf(file).includes(shows))).toEqual([])
})

it('each sentence about what the server does has its row', () => {
  const sentences = sentencesOf(textOf('docs/serving.md'))
  expect(sentences.length).toBeGreaterThan(70)
  expect(sentences.filter((sentence) => !SERVING.some(([promise]) => sentence.includes(promise)))).toEqual([])
})
