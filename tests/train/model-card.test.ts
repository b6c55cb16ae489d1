import { describe, expect, it } from 'vitest'
import { parse } from 'yaml'
import { resolveConfig } from '../../src/lora/config.js'
import type { Run } from '../../src/train/run.js'
import { type CardParts, cardOf, modelCard } from '../../src/train/saved/model-card.js'
import { causalLm } from '../../src/train/tasks/causal-lm.js'
import { embedding } from '../../src/train/tasks/embedding.js'
import { imageClassification } from '../../src/train/tasks/image-classification.js'
import { textClassification } from '../../src/train/tasks/text-classification.js'

const parts: CardParts = {
  folder: 'out/mine',
  base: 'models/tiny',
  baseName: 'org/tiny',
  dtype: 'fp32',
  namesDtype: false,
  config: resolveConfig({ rank: 4 }),
  use: causalLm.use,
  input: undefined,
  isChat: false,
  knownTools: undefined,
  data: ['data/a.jsonl', 'b'],
  evalData: ['data/held: "out".csv'],
  evalShare: undefined,
  evaluate: undefined,
  repeat: undefined,
  metrics: { loss: 1.25, perplexity: 3.49034, nothing: Number.NaN },
  before: { loss: 2.5 },
  settings: { steps: 3, rank: 4, absent: undefined },
  labels: undefined,
  problemType: undefined,
  callOptions: {},
}

const metadataOf = (card: string) => parse(card.split('---\n')[1])
const blocksOf = (card: string, language: string) =>
  [...card.matchAll(new RegExp(`\`\`\`${language}\\n(.*?)\`\`\``, 'gs'))].map(([, code]) => code)

describe('modelCard', () => {
  it('has the metadata that the Hub reads', () => {
    expect(metadataOf(modelCard(parts))).toEqual({
      base_model: 'org/tiny',
      library_name: 'peft',
      pipeline_tag: 'text-generation',
      tags: ['base_model:adapter:org/tiny', 'lora', 'lowrank'],
      metrics: ['loss', 'perplexity'],
      'model-index': [
        {
          name: 'mine',
          results: [
            {
              task: { type: 'text-generation' },
              dataset: { name: 'held: "out".csv', type: 'unknown' },
              metrics: [
                { type: 'loss', value: 1.25 },
                { type: 'perplexity', value: 3.49034 },
              ],
            },
          ],
        },
      ],
    })
  })

  it('names no base and no data that are not on the Hub, and no metrics where nothing was measured', () => {
    const card = modelCard({ ...parts, baseName: './models/tiny', data: ['data/a', 'b/c.jsonl'], metrics: {} })
    expect(metadataOf(card)).toEqual({
      library_name: 'peft',
      pipeline_tag: 'text-generation',
      tags: ['lora', 'lowrank'],
    })
    expect(card).toContain('trained with lowrank on `a`, `c.jsonl`.')
  })

  it('asks an adapter of chats as a chat, which pipelines put into the template', () => {
    const [beside, alone] = blocksOf(modelCard({ ...parts, input: "Who's there?", isChat: true }), 'js')
    expect(beside).toContain("run([{ role: 'user', content: 'Who\\'s there?' }], { adapter: 'mine' })")
    expect(alone).toContain("run([{ role: 'user', content: 'Who\\'s there?' }])")
    const [text] = blocksOf(modelCard({ ...parts, input: 'It was' }), 'js')
    expect(text).toContain("run('It was', { adapter: 'mine' })")
  })

  it('names the pooling of the calls that give vectors', () => {
    const card = modelCard({ ...parts, use: embedding.use, callOptions: { pooling: 'cls', normalize: true } })
    expect(metadataOf(card)).toMatchObject({ pipeline_tag: 'feature-extraction' })
    const [beside, alone] = blocksOf(card, 'js')
    expect(beside).toContain("run('The', { adapter: 'mine', pooling: 'cls', normalize: true })")
    expect(alone).toContain("pipeline('feature-extraction', 'merged', { dtype: 'fp32' })")
    expect(alone).toContain("run('The', { pooling: 'cls', normalize: true })")
    expect(blocksOf(card, 'python')[0]).toContain('AutoModel.from_pretrained("org/tiny")')
  })

  it('gives PEFT the labels of a classifier', () => {
    const labels = ['good', 'not "good"']
    const card = modelCard({
      ...parts,
      use: textClassification.use,
      labels,
      problemType: 'single_label_classification',
    })
    expect(blocksOf(card, 'python')[0]).toContain(
      'AutoModelForSequenceClassification.from_pretrained("org/tiny", num_labels=2, problem_type="single_label_classification", id2label={0: "good", 1: "not \\"good\\""})',
    )
  })

  it('reads scores as logits: the pipeline would apply softmax', () => {
    const card = modelCard({ ...parts, use: textClassification.use, labels: ['LABEL_0'], problemType: 'regression' })
    expect(blocksOf(card, 'js')[1]).toContain('AutoModelForSequenceClassification')
    expect(blocksOf(card, 'js')[1]).not.toContain('pipeline(')
  })

  it('shows a classifier of images a picture, and runs it merged in transformers.js', () => {
    const card = modelCard({ ...parts, use: imageClassification.use })
    expect(metadataOf(card)).toMatchObject({ pipeline_tag: 'image-classification' })
    expect(blocksOf(card, 'sh')[0]).toContain('classify --model models/tiny --adapter out/mine --image "photo.jpg"')
    const [alone, ...others] = blocksOf(card, 'js')
    expect(alone).toContain("run('photo.jpg')")
    expect(others).toEqual([])
    expect(blocksOf(card, 'python')[0]).toContain('AutoModelForImageClassification')
  })

  it('names the revision of the base', () => {
    const config = resolveConfig({ peftFields: { revision: 'v2' } })
    expect(blocksOf(modelCard({ ...parts, config }), 'python')[0]).toContain(
      'from_pretrained("org/tiny", revision="v2")',
    )
  })

  it('quotes paths for the shell and for JavaScript', () => {
    const card = modelCard({ ...parts, folder: "out/it's mine" })
    expect(blocksOf(card, 'sh')[0]).toContain(`--adapter 'out/it'\\''s mine'`)
    expect(blocksOf(card, 'js')[0]).toContain("mine: 'out/it\\'s mine'")
  })
  describe('of a run', () => {
    const path = './models/tiny'
    const run = {
      options: {
        model: { directory: { name: path }, graphs: { model: 'onnx/model_q4.onnx' }, config: {} },
        data: [],
        out: { name: 'out/mine' },
      },
      around: { sources: { model: path, data: 'a.jsonl' } },
      task: causalLm,
      open: {},
      adapter: { config: resolveConfig() },
      settings: {},
      facts: { writers: {} },
    } as unknown as Run
    const report = { evalLoss: null, evalMetrics: {}, evaluations: [], steps: 1 }
    const { model } = run.options
    const cardWith = (own: object, sources: object = {}, adapter: object = {}) =>
      cardOf(report, {
        ...run,
        options: { ...run.options, ...own },
        around: { sources: { ...run.around.sources!, ...sources } },
        adapter: { ...run.adapter, ...adapter } as Run['adapter'],
      })

    it('names the type of the graphs in each call, where the folder alone opens others', () => {
      const card = cardWith({})
      const [generate, merge] = blocksOf(card, 'sh')
      expect(generate).toContain(`generate --model ${path} --dtype q4 --adapter`)
      expect(merge).toContain(`merge --base ${path} --dtype q4 --adapter`)
      const [beside, alone] = blocksOf(card, 'js')
      expect(beside).toContain(`'${path}', { dtype: 'q4', adapters: {`)
      expect(alone).toContain("'merged', { dtype: 'q4' }")

      const config = { 'transformers.js_config': { dtype: 'q4' } }
      const chosen = cardWith({ model: { ...model, config } })
      expect(chosen).not.toContain('--dtype')
      expect(blocksOf(chosen, 'js')[1]).toContain("'merged', { dtype: 'q4' }")
      const other = cardWith({ model: { ...model, config, graphs: { model: 'model.onnx' } } })
      expect(blocksOf(other, 'sh')[0]).toContain('--dtype fp32')
    })

    it('names a graph by its file, and a type for each graph, where the run did', () => {
      const file = cardWith({}, { model: `${path}/onnx/model_q4.onnx` })
      expect(blocksOf(file, 'sh')[0]).toContain(`--model ${path}/onnx/model_q4.onnx --adapter`)
      expect(blocksOf(file, 'js')[1]).toContain("'merged', { dtype: 'q4' }")
      const graphs = { encoder: 'onnx/encoder_model.onnx', decoder: 'onnx/decoder_model_merged_q4.onnx' }
      expect(blocksOf(cardWith({ model: { ...model, graphs } }), 'js')[1]).toContain(
        '\'merged\', { dtype: {"encoder_model":"fp32","decoder_model_merged":"q4"} }',
      )
    })

    it('names a model on the Hub as lowrank reads it', () => {
      const directory = { ...model.directory, hubId: 'org/tiny' }
      const baseIn = (source: string) =>
        blocksOf(cardWith({ model: { ...model, directory } }, { model: source }), 'sh')[0].split(' ')[4]
      expect(baseIn('hf:org/tiny@v2')).toBe('org/tiny@v2')
      expect(baseIn('hf:org/tiny@v2/part')).toBe('hf:org/tiny@v2/part')
      const open = { ...run.options, model: { ...model, directory: { ...directory, hubRevision: 'v2' } } }
      const card = cardOf(report, { ...run, options: open, around: {} })
      expect(blocksOf(card, 'sh')[0]).toContain('--model org/tiny@v2 ')
    })

    it('gives calls the variables of the chat template', () => {
      const card = cardWith({ chatTemplateArgs: { enable_thinking: false } }, {}, { chatTemplate: '{{ messages }}' })
      expect(blocksOf(card, 'sh')[0]).toContain(`--chat-template-args '{"enable_thinking":false}'`)
      for (const call of blocksOf(card, 'js'))
        expect(call).toContain('tokenizer_encode_kwargs: {"enable_thinking":false}')
    })

    it('says how to repeat the run, where that is written', () => {
      const repeat = 'lowrank train --config out/mine/run.json --out again'
      expect(cardWith({})).toContain(repeat)
      expect(cardWith({ adapter: {} })).not.toContain('repeat')
      expect(cardOf(report, { ...run, around: {} })).not.toContain('repeat')
    })
  })
})
