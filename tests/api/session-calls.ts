// A valid call of every method of sessions, for calls.ts.

import type * as lowrank from '../../src/api/node.js'
import type { Call } from './calls.js'

/** @param opened contains the session by the time the calls are made */
export function sessionCalls(
  opened: { readonly session: lowrank.AdapterSession },
  adapter: () => lowrank.LoraAdapter,
): Record<string, Call> {
  return {
    'session.add': { call: (...args) => opened.session.add(...(args as [never, never])), args: () => ['a', adapter()] },
    'session.remove': { call: (...args) => opened.session.remove(...(args as [never])), args: () => ['a'] },
    'session.run': {
      call: (...args) => opened.session.run(...(args as [never, never])),
      args: () => [
        { input_ids: { type: 'int64', data: new BigInt64Array(2), dims: [1, 2] } },
        { adapter: null, outputNames: ['logits'] },
      ],
      options: 1,
      misspelled: { adaptor: /adapter/, outputs: /outputNames/ },
    },
    'session.generate': {
      call: (...args) => opened.session.generate(...(args as [never, never])),
      args: () => [
        'a',
        {
          ...{
            adapter: null,
            maxNewTokens: 1,
            temperature: 0,
            topK: 1,
            topP: 1,
            minP: 0,
            repetitionPenalty: 1,
            seed: 1,
          },
          ...{
            stop: ['x'],
            logprobs: 0,
            batchSize: 1,
            chatTemplate: '{{ 1 }}',
            chatTemplateArgs: {},
            tools: [],
            on: { text() {} },
          },
        },
      ],
      options: 1,
      misspelled: { max_new_tokens: /maxNewTokens/, top_k: /topK/, adaptor: /adapter/ },
    },
    'session.stream': {
      call: (...args) => opened.session.stream(...(args as [never, never])).next(),
      args: () => ['a', { adapter: null, maxNewTokens: 1 }],
      options: 1,
      misspelled: { max_new_tokens: /maxNewTokens/, on_text: /./ },
    },
    'session.classify': {
      call: (...args) => (opened.session.classify as (...args: unknown[]) => unknown)(...args),
      args: () => [
        ['a', { text: 'a', textPair: 'b' }],
        { adapter: null, topK: 1, maxLength: 4, batchSize: 1, signal: undefined },
      ],
      options: 1,
      misspelled: { top_k: /topK/, batch_size: /batchSize/, adaptor: /adapter/ },
    },
    'session.tag': {
      call: (...args) => (opened.session.tag as (...args: unknown[]) => unknown)(...args),
      args: () => [['a', { words: ['a', 'b'] }], { adapter: null, maxLength: 4, batchSize: 1, signal: undefined }],
      options: 1,
      misspelled: { max_length: /maxLength/, batch_size: /batchSize/, adaptor: /adapter/ },
    },
    'session.embed': {
      call: (...args) => (opened.session.embed as (...args: unknown[]) => unknown)(...args),
      args: () => [
        ['a'],
        { adapter: null, pooling: 'mean', normalize: true, dimensions: 2, maxLength: 4, batchSize: 1 },
      ],
      options: 1,
      misspelled: { poling: /pooling/, normalise: /normalize/, adaptor: /adapter/ },
    },
  }
}
