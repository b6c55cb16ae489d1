// Every field of PEFT's LoraConfig (tests/golden/config/fields.json): supported, kept as it is, or refused by name.
// None is forgotten.

import { readFileSync } from 'node:fs'
import { expect, test } from 'vitest'
import { type LoraConfig, UnsupportedError } from '../../src/api/node.js'
import { formatPeftConfig, parsePeftConfig } from '../../src/lora/peft/config.js'

const golden = new URL('../golden/config/fields.json', import.meta.url)
const defaults: Record<string, unknown> = JSON.parse(readFileSync(golden, 'utf8')).fields

/**
 * The fields, each with a value other than the default. `supported`: lowrank's LoraConfig has the field. `kept`: it
 * does not change the meaning of the weights, and is written again unchanged. `with`: other fields that PEFT requires
 * for it.
 */
const FIELDS: Record<string, { is: 'supported' | 'kept' | 'refused'; value: unknown; with?: Record<string, unknown> }> =
  {
    alora_invocation_tokens: { is: 'refused', value: [5, 7] },
    alpha_pattern: { is: 'supported', value: { q_proj: 3 } },
    arrow_config: { is: 'refused', value: { arrow_top_k: 3 } },
    auto_mapping: { is: 'kept', value: { base_model_class: 'LlamaModel', parent_library: 'transformers' } },
    base_model_name_or_path: { is: 'supported', value: 'some/model' },
    bias: { is: 'supported', value: 'lora_only' },
    corda_config: { is: 'kept', value: { corda_method: 'kpm' } },
    ensure_weight_tying: { is: 'supported', value: true },
    eva_config: { is: 'kept', value: { rho: 1.5 } },
    exclude_modules: { is: 'supported', value: ['o_proj'] },
    fan_in_fan_out: { is: 'supported', value: true },
    inference_mode: { is: 'kept', value: true },
    init_lora_weights: { is: 'supported', value: 'gaussian' },
    kasa_config: { is: 'refused', value: { beta: 1 } },
    layer_replication: {
      is: 'refused',
      value: [
        [0, 2],
        [1, 3],
      ],
    },
    layers_pattern: { is: 'supported', value: 'layers', with: { layers_to_transform: [1] } },
    layers_to_transform: { is: 'supported', value: [1] },
    loftq_config: { is: 'kept', value: { loftq_bits: 4 } },
    lora_alpha: { is: 'supported', value: 5 },
    lora_bias: { is: 'supported', value: true },
    lora_dropout: { is: 'supported', value: 0.25 },
    lora_ga_config: { is: 'kept', value: { direction: 'ArB2r' } },
    megatron_config: { is: 'kept', value: { num_layers: 2 } },
    megatron_core: { is: 'kept', value: 'other.core' },
    modules_to_save: { is: 'supported', value: ['lm_head'] },
    monteclora_config: { is: 'refused', value: { samples: 2 } },
    peft_type: { is: 'kept', value: 'LORA' },
    peft_version: { is: 'kept', value: '0.1' },
    qalora_group_size: { is: 'kept', value: 32 },
    r: { is: 'supported', value: 5 },
    rank_pattern: { is: 'supported', value: { q_proj: 3 } },
    revision: { is: 'kept', value: 'main' },
    runtime_config: { is: 'kept', value: { ephemeral_gpu_offload: true } },
    target_modules: { is: 'supported', value: ['k_proj'] },
    target_parameters: { is: 'supported', value: ['mlp.experts.down_proj'] },
    task_type: { is: 'supported', value: 'CAUSAL_LM' },
    trainable_token_indices: { is: 'supported', value: [3, 1] },
    use_bdlora: { is: 'refused', value: { nblocks: 2 } },
    use_dora: { is: 'supported', value: true },
    use_qalora: { is: 'refused', value: true },
    use_rslora: { is: 'supported', value: true },
    velora_config: { is: 'kept', value: { num_groups: 8 } },
  }

function parse(fields: Record<string, unknown>): LoraConfig {
  const { config, problems } = parsePeftConfig(new TextEncoder().encode(JSON.stringify(fields)), 'adapter_config.json')
  for (const problem of problems) throw problem
  return config
}

/** A saved config with the dataclass's defaults, and the fields that PEFT fills in. */
const BASE = { ...defaults, peft_type: 'LORA', target_modules: ['q_proj'] }

test('the table has the fields that PEFT has', () => {
  expect(Object.keys(FIELDS).sort()).toEqual(Object.keys(defaults).sort())
  for (const [field, { value }] of Object.entries(FIELDS)) expect(value, field).not.toEqual(defaults[field])
})

test('all defaults load, and are written again', () => {
  const config = parse(BASE)
  const written = JSON.parse(formatPeftConfig(config, config.targetModules, config.targetParameters, []))
  expect(written).toEqual({ ...BASE, inference_mode: true })
})

test.each(Object.entries(FIELDS))('%s', (field, { is, value, with: others = {} }) => {
  const fields = { ...BASE, ...others, [field]: value }
  if (is === 'refused') {
    expect(() => parse(fields)).toThrow(UnsupportedError)
    expect(() => parse(fields)).toThrow(`adapter_config.json: ${field}`)
    return
  }
  const config = parse(fields)
  const written = JSON.parse(formatPeftConfig(config, config.targetModules, config.targetParameters, []))
  expect(written[field]).toEqual(value)
  const meaning = ({ peftFields: _, ...rest }: LoraConfig) => rest
  const plain = meaning(parse({ ...BASE, ...others }))
  if (is === 'supported') expect(meaning(config)).not.toEqual(plain)
  else expect(meaning(config)).toEqual(plain)
})
