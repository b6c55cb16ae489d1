// The preset peft: the defaults of PEFT's LoraConfig and of transformers' TrainingArguments
// (tests/golden/training-methods/defaults.json).

import { readFileSync } from 'node:fs'
import { describe, expect, it } from 'vitest'
import { loadModel, MemoryDirectory } from '../../src/api/node.js'
import { ADAMW } from '../../src/train/engine/optimizer.js'
import { defaultsOf, resolveSettings } from '../../src/train/settings.js'
import { train } from '../../src/train/train.js'
import { inThread } from '../run/models.js'
import { data, folder } from './tiny.js'

const { LoraConfig: lora, TrainingArguments: run } = JSON.parse(
  readFileSync('tests/golden/training-methods/defaults.json', 'utf8'),
)

describe('the preset peft', () => {
  it("has transformers' defaults for the run", () => {
    expect(resolveSettings({ preset: 'peft' })).toMatchObject({
      epochs: run.num_train_epochs,
      batchSize: run.per_device_train_batch_size,
      gradientAccumulation: run.gradient_accumulation_steps,
      learningRate: run.learning_rate,
      schedule: run.lr_scheduler_type,
      warmupRatio: run.warmup_steps,
      weightDecay: run.weight_decay,
      maxGradNorm: run.max_grad_norm,
    })
    const { adam_beta1: beta1, adam_beta2: beta2, adam_epsilon: epsilon } = run
    expect(ADAMW).toEqual({ beta1, beta2, epsilon })
  })

  it("has PEFT's defaults for the adapter", () => {
    const { config } = defaultsOf('peft')
    expect(lora.init_lora_weights).toBe(true) // kaiming-uniform A
    expect(lora.target_modules).toBeNull() // those of the model's type
    expect(config).toEqual({
      rank: lora.r,
      alpha: lora.lora_alpha,
      dropout: lora.lora_dropout,
      targetModules: 'default',
      init: 'kaiming-uniform',
      seed: run.seed,
      useRslora: lora.use_rslora,
      useDora: lora.use_dora,
      bias: lora.bias,
    })
  })

  it('gives way to options, and is in run.json with all that it meant', async () => {
    const out = new MemoryDirectory()
    const model = await loadModel(folder, { runtime: inThread })
    const few = { data: data.slice(0, 4), batchSize: 2, maxLength: 16, maxSteps: 1, threads: 1 }
    const config = { rank: 4, targetModules: ['q_proj'] }
    const sources = { model: 'a-model', data: 'a-file' }
    const { adapter } = await train({ model, ...few, preset: 'peft', config, out }, { sources })
    await model.close()
    expect(adapter.config.alpha).toBe(8)
    expect(JSON.parse(new TextDecoder().decode(out.files.get('run.json')))).toMatchObject({
      preset: 'peft',
      batchSize: 2,
      epochs: 3,
      learningRate: 5e-5,
      schedule: 'linear',
      warmupRatio: 0,
      config: { rank: 4, alpha: 8, targetModules: ['q_proj'], init: 'kaiming-uniform' },
    })
  })
})
