// Answers in the form of Together's API reference: whole lists, jobs in its own words, and weights in an archive.

import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { gzipSync } from 'node:zlib'
import { goldenPath } from '../../golden.js'
import { type Answer, chat, type ProviderServer } from './provider-server.js'

export const TOGETHER_MODEL = 'acme/SmolLM2-135M-support-1a2b3c4d'
const ID = 'ft-0a1b2c3d-aaaa-bbbb'
const DAY = '2026-05-01T10:00:00Z'
const content = Array.from({ length: 8 }, (_, i) => `${JSON.stringify(chat(`Where is ${i}?`, `At ${i}.`))}\n`).join('')

const job = {
  ...{ id: ID, status: 'completed', created_at: DAY, updated_at: DAY, user_id: 'user-1', owner_address: 'a@b.c' },
  ...{ training_file: 'file-t', model: 'HuggingFaceTB/SmolLM2-135M', model_output_name: TOGETHER_MODEL, n_epochs: 2 },
  ...{
    training_type: { type: 'Lora', lora_r: 4, lora_alpha: 8 },
    training_method: { method: 'sft', train_on_inputs: false },
    random_seed: 3,
  },
  events: [],
}

const event = {
  ...{ object: 'fine-tune-event', created_at: DAY, message: 'Job finished', type: 'job_complete', level: 'info' },
  ...{ param_count: 0, token_count: 9, total_steps: 4, wandb_url: '', step: 4, checkpoint_path: '', model_path: '' },
  ...{ training_offset: 0, hash: '' },
}

const file = {
  ...{ id: 'file-t', object: 'file', created_at: 1_750_000_000, filename: 'support.jsonl', purpose: 'fine-tune' },
  // Together does not count the bytes of each file.
  ...{ bytes: 0, Processed: true, FileType: 'jsonl' },
}

/** A tar with files, each of them below a folder. */
export function tarOf(files: Readonly<Record<string, Uint8Array>>): Buffer {
  const parts = Object.entries(files).flatMap(([name, bytes]) => {
    const header = Buffer.alloc(512)
    header.write(name, 0)
    header.write('0000644\0', 100)
    header.write(`${bytes.length.toString(8).padStart(11, '0')} `, 124)
    header.write('00000000000 ', 136)
    header.write('        ', 148)
    header.write('0', 156)
    header.write('ustar\u000000', 257)
    header.write(
      `${header
        .reduce((sum, byte) => sum + byte, 0)
        .toString(8)
        .padStart(6, '0')}\0 `,
      148,
    )
    return [header, bytes, Buffer.alloc((512 - (bytes.length % 512)) % 512)]
  })
  return Buffer.concat([...parts, Buffer.alloc(1024)])
}

export const adapterFile = (name: string) => readFileSync(join(goldenPath('peft', 'f32'), name))
export const archive = () =>
  gzipSync(
    tarOf({
      'out/optimizer.pt': Buffer.alloc(700, 1),
      'out/adapter_config.json': adapterFile('adapter_config.json'),
      '../../adapter_model.safetensors': adapterFile('adapter_model.safetensors'),
    }),
  )

export function answerOfTogether(_: string, path: string, query: URLSearchParams): Answer | undefined {
  if (path === '/fine-tunes') return { body: { data: [job] } }
  if (path === `/fine-tunes/${ID}/events`) return { body: { data: [event] } }
  if (path === `/fine-tunes/${ID}/checkpoints`)
    return { body: { data: [{ step: 4, path: 's3://x', created_at: DAY, checkpoint_type: 'Final' }] } }
  if (path === '/files') return { body: { data: [file] } }
  if (path === '/files/file-t/content') return { body: content, headers: { 'content-type': 'text/plain' } }
  if (path === '/batches') return { body: [{ id: 'b-1', status: 'COMPLETED', input_file_id: 'file-t' }] }
  if (path === '/models') {
    return { body: [{ id: TOGETHER_MODEL, object: 'model', created: 1, type: 'chat' }] }
  }
  const isAdapter = query.get('ft_id') === ID && query.get('checkpoint') === 'adapter'
  if (path === '/finetune/download' && isAdapter) return { body: archive() }
  return { status: 404, body: { error: { message: 'not found' } } }
}

export const environmentOfTogether = ({ url }: ProviderServer) => ({
  TOGETHER_API_KEY: 'secret',
  TOGETHER_BASE_URL: url,
})
