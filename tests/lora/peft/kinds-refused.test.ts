// Magnitudes, biases, replaced tensors and rows that do not fit their config must not load.

import { describe, expect, test } from 'vitest'
import { loadAdapter } from '../../../src/api/node.js'
import type { TensorBytes } from '../../../src/files/safetensors.js'
import { A, adapterFolder, B, CONFIG, failure, PAIR, tensor } from '../adapter-folder.js'

describe('tensors beside the factors', () => {
  test.each<[string, object, TensorBytes[], RegExp]>([
    [
      'DoRA without a magnitude',
      { use_dora: true },
      PAIR,
      /use_dora .* is on, but there is no .*q_proj\.lora_magnitude_vector/,
    ],
    [
      'a magnitude of another length',
      { use_dora: true },
      [...PAIR, tensor('base_model.model.q_proj.lora_magnitude_vector', [3])],
      /lora_magnitude_vector: not one number for each row of B; expected \(4\), got \(3\)/,
    ],
    [
      'a convolution’s A with a linear layer’s B',
      {},
      [tensor(A, [2, 3, 3, 3]), tensor(B, [4, 2])],
      /lora_A\.weight: not the factors of a convolution; expected .*\*kernel.*, got \(2, 3, 3, 3\) and \(4, 2\)/,
    ],
    [
      'a convolution of four dimensions',
      {},
      [tensor(A, [2, 3, 1, 1, 1, 1]), tensor(B, [4, 2, 1, 1, 1, 1])],
      /not the factors of a convolution/,
    ],
    [
      'a convolution’s B with a kernel',
      {},
      [tensor(A, [2, 3, 3]), tensor(B, [4, 2, 3])],
      /not the factors of a convolution/,
    ],
    [
      'a convolution’s A of another rank',
      {},
      [tensor(A, [3, 3, 3]), tensor(B, [4, 3, 1])],
      /lora_A\.weight: wrong shape .*expected \(2, in, \*kernel\), got \(3, 3, 3\)/,
    ],
    [
      'a convolution’s magnitude in a linear layer’s shape',
      { use_dora: true },
      [tensor(A, [2, 3, 3]), tensor(B, [4, 2, 1]), tensor('base_model.model.q_proj.lora_magnitude_vector', [4])],
      /lora_magnitude_vector: not one number for each row of B; expected \(1, 4, 1\), got \(4\)/,
    ],
    [
      'a magnitude that is not finite',
      { use_dora: true },
      [...PAIR, tensor('base_model.model.q_proj.lora_magnitude_vector', [4], 'fp32', Number.NaN)],
      /lora_magnitude_vector: holds a value that is not finite/,
    ],
    ['a bias of B that is not there', { lora_bias: true }, PAIR, /lora_bias .* is on, but there is no .*lora_B\.bias/],
    ['tokens without rows', { trainable_token_indices: [1] }, PAIR, /no rows for trainable_token_indices/],
    [
      'other rows than tokens',
      { trainable_token_indices: [1] },
      [...PAIR, tensor('base_model.model.e.token_adapter.trainable_tokens_delta', [2, 3])],
      /trainable_tokens_delta: wrong shape .*expected \(1, features\), got \(2, 3\)/,
    ],
    [
      'rows of another module',
      { trainable_token_indices: { f: [1, 2] } },
      [...PAIR, tensor('base_model.model.e.token_adapter.trainable_tokens_delta', [2, 3])],
      /trainable_tokens_delta: no layer claims this tensor/,
    ],
    [
      'two tensors for one bias',
      { bias: 'all' },
      [...PAIR, tensor('base_model.model.q_proj.base_layer.bias', [4]), tensor('base_model.model.q_proj.bias', [4])],
      /a second tensor that replaces q_proj\.bias/,
    ],
    [
      'a replaced tensor that is not finite',
      { modules_to_save: ['head'] },
      [...PAIR, tensor('base_model.model.head.weight', [4], 'fp32', Number.POSITIVE_INFINITY)],
      /head\.weight: holds a value that is not finite/,
    ],
  ])('%s', async (_, config, tensors, message) => {
    const error = await failure(await adapterFolder({ ...CONFIG, ...config }, tensors))
    expect(error.message).toMatch(/^adapter\/adapter_model\.safetensors/)
    expect(error.message).toMatch(message)
  })

  test('a magnitude’s newer spelling is read', async () => {
    const magnitude = tensor('base_model.model.q_proj.lora_magnitude_vector.weight', [4])
    const adapter = await loadAdapter(await adapterFolder({ ...CONFIG, use_dora: true }, [...PAIR, magnitude]))
    expect(adapter.layer('q_proj').magnitude).toEqual(new Float32Array(4).fill(0.5))
  })
})
