import { describe, expect, it } from 'vitest'
import { parse } from 'yaml'
import { resolveConfig } from '../../src/lora/config.js'
import { causalLm } from '../../src/tasks/causal-lm.js'
import { embedding } from '../../src/tasks/embedding.js'
import { imageClassification } from '../../src/tasks/image-classification.js'
import { textClassification } from '../../src/tasks/text-classification.js'
import { type CardParts, modelCard } from '../../src/train/saved/model-card.js'

const parts: CardParts = {
  folder: 'out/mine',
  base: 'models/tiny',
  baseName: 'org/tiny',
  config: resolveConfig({ rank: 4 }),
  use: causalLm.use,
  input: undefined,
  isChat: false,
  data: ['data/a.jsonl', 'b'],
  evalData: ['data/held: "out".csv'],
  evalShare: undefined,
  metrics: { loss: 1.25, perplexity: 3.49034, nothing: Number.NaN },
  before: { loss: 2.5 },
  settings: { steps: 3, rank: 4, absent: undefined },
  labels: undefined,
  problemType: undefined,
  pooling: undefined,
  normalize: false,
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
    const card = modelCard({ ...parts, use: embedding.use, pooling: 'cls', normalize: true })
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
})
