// biome-ignore-all lint/suspicious/noExplicitAny: answers and requests are JSON of any form

// A program that fine-tunes at OpenAI, from their reference alone: client, base and rows are given.

import assert from 'node:assert/strict'
import { setTimeout as wait } from 'node:timers/promises'

const ENDS = ['succeeded', 'failed', 'cancelled']

/** Waits for a job, and collects its events as a program that polls does. */
export async function watch(client: any, id: string): Promise<{ job: any; events: any[] }> {
  const events = new Map<string, any>()
  for (;;) {
    const job = await client.fineTuning.jobs.retrieve(id)
    for await (const event of client.fineTuning.jobs.listEvents(id, { limit: 5 })) events.set(event.id, event)
    if (ENDS.includes(job.status)) return { job, events: [...events.values()] }
    await wait(50)
  }
}

/**
 * @param client a client of OpenAI's package
 * @param base the name of the base
 * @param row gives the row of a number: `{ prompt, completion }`, or `{ messages }` if the base has a chat template
 */
export async function fineTune(
  client: any,
  base: string,
  row: (i: number) => Readonly<Record<string, unknown>>,
  toFile: (bytes: Buffer, name: string) => Promise<unknown>,
) {
  const lines = (count: number) => Array.from({ length: count }, (_, i) => `${JSON.stringify(row(i))}\n`).join('')
  const upload = async (text: string, name: string) => {
    const file = await client.files.create({ file: await toFile(Buffer.from(text), name), purpose: 'fine-tune' })
    assert.equal(file.bytes, Buffer.byteLength(text))
    return client.files.waitForProcessing(file.id, { pollInterval: 50 })
  }
  const training = await upload(lines(12), 'training.jsonl')
  const validation = await upload(lines(4), 'validation.jsonl')
  assert.equal(training.status, 'processed')
  assert.equal(await (await client.files.content(training.id)).text(), lines(12))

  // A job from the beginning to the end, and its model.
  const created = await client.fineTuning.jobs.create({
    ...{ model: base, training_file: training.id, validation_file: validation.id, suffix: 'boats', seed: 7 },
    metadata: { purpose: 'test' },
    method: { type: 'supervised', supervised: { hyperparameters: { n_epochs: 2, batch_size: 4 } } },
  })
  assert.equal(created.status, 'validating_files')
  const { job, events } = await watch(client, created.id)
  assert.equal(job.status, 'succeeded', JSON.stringify(job.error))
  assert.match(job.fine_tuned_model, new RegExp(`^ft:${base}:lowrank:boats:\\w+$`))
  assert.ok(job.trained_tokens > 0 && job.finished_at >= job.created_at)
  const metrics = events.filter(({ type }) => type === 'metrics')
  assert.deepEqual(
    metrics.map(({ data }) => data.step).sort((a, b) => a - b),
    [1, 2, 3, 4, 5, 6],
  )
  assert.deepEqual(job.hyperparameters, { n_epochs: 2, batch_size: 4, learning_rate_multiplier: 1 })
  const [results] = job.result_files
  assert.match(await (await client.files.content(results)).text(), /^step,train_loss,.*\n1,\d/)
  const checkpoints = await client.fineTuning.jobs.checkpoints.list(job.id)
  assert.deepEqual(
    checkpoints.data.map(({ step_number }: any) => step_number),
    [6, 3],
  )
  const listed = []
  for await (const { id } of client.fineTuning.jobs.list({ limit: 1, metadata: { purpose: 'test' } })) listed.push(id)
  assert.ok(listed.includes(job.id))
  const request = { prompt: row(0).prompt ?? 'Hello', max_tokens: 8, temperature: 0 }
  const say = async (model: string) => (await client.completions.create({ ...request, model })).choices[0].text
  assert.notEqual(await say(job.fine_tuned_model), await say(base))
  await say(checkpoints.data[1].fine_tuned_model_checkpoint)
  const names = []
  for await (const { id } of client.models.list()) names.push(id)
  assert.ok(names.includes(job.fine_tuned_model))

  // Bad data.
  const bad = await upload(`${lines(2)}{"text": 3}\n{"question": "x"}\n`, 'bad.jsonl')
  const failing = await client.fineTuning.jobs.create({ model: base, training_file: bad.id })
  const failed = await watch(client, failing.id)
  assert.equal(failed.job.status, 'failed')
  assert.equal(failed.job.error.param, 'training_file')
  assert.equal(
    failed.events.filter(({ level, message }) => level === 'error' && /^training.jsonl, line [34]/.test(message))
      .length,
    2,
  )

  // Paused, resumed, cancelled.
  const begin = async (n_epochs: number): Promise<string> => {
    const hyperparameters = { n_epochs, batch_size: 2 }
    const { id } = await client.fineTuning.jobs.create({ model: base, training_file: training.id, hyperparameters })
    while ((await client.fineTuning.jobs.listEvents(id)).data.every(({ type }: any) => type !== 'metrics'))
      await wait(50)
    return id
  }
  const long = await begin(20)
  assert.equal((await client.fineTuning.jobs.pause(long)).status, 'queued')
  await client.fineTuning.jobs.resume(long)
  const resumed = await watch(client, long)
  assert.equal(resumed.job.status, 'succeeded', JSON.stringify(resumed.job.error))
  const steps = resumed.events.filter(({ type }) => type === 'metrics').map(({ data }) => data.step)
  assert.deepEqual(
    steps.sort((a, b) => a - b),
    Array.from({ length: 120 }, (_, i) => i + 1),
  )
  const endless = await begin(1000)
  assert.equal((await client.fineTuning.jobs.cancel(endless)).status, 'cancelled')
  assert.equal((await watch(client, endless)).job.fine_tuned_model, null)

  // Continued from the model, and deleted.
  const further = await client.fineTuning.jobs.create({
    ...{ model: job.fine_tuned_model, training_file: training.id, hyperparameters: { n_epochs: 1 } },
  })
  const continued = (await watch(client, further.id)).job
  assert.equal(continued.status, 'succeeded', JSON.stringify(continued.error))
  await say(continued.fine_tuned_model)
  assert.equal((await client.models.delete(job.fine_tuned_model)).deleted, true)
  await assert.rejects(say(job.fine_tuned_model), { status: 404, code: 'model_not_found' })
  for (const { id } of [training, validation, bad]) assert.equal((await client.files.delete(id)).deleted, true)
  await assert.rejects(client.files.retrieve(training.id), { status: 404 })
}

/** Stored chats, and jobs of other methods, which do not have to end. */
export async function useTheRest(
  client: any,
  model: string,
  toFile: (bytes: Buffer, name: string) => Promise<unknown>,
) {
  const rows = Buffer.from('{"prompt":"a","chosen":"b","rejected":"c"}\n{"prompt":"d","chosen":"e","rejected":"f"}\n')
  const file = await client.files.create({ file: await toFile(rows, 'rows.jsonl'), purpose: 'fine-tune' })
  assert.equal(await (await client.files.content(file.id)).text(), rows.toString())
  await client.files.list({ purpose: 'fine-tune' })

  const grader = {
    ...{ type: 'string_check', name: 'same', operation: 'eq' },
    ...{ input: '{{sample.output_text}}', reference: '{{item.chosen}}' },
  }
  for (const method of [
    { type: 'dpo', dpo: { hyperparameters: { beta: 0.2, n_epochs: 'auto' } } },
    { type: 'reinforcement', reinforcement: { grader, hyperparameters: { compute_multiplier: 'auto' } } },
  ]) {
    const { id } = await client.fineTuning.jobs.create({ model, training_file: file.id, method, seed: 3 })
    await client.fineTuning.jobs.cancel(id)
  }

  const messages = [{ role: 'user', content: 'Is the boat red?' }]
  const metadata = { topic: 'boats' }
  const { id } = await client.chat.completions.create({ model, messages, max_tokens: 4, store: true, metadata })
  await client.chat.completions.update(id, { metadata: { ...metadata, rating: 'good' } })
  await client.chat.completions.retrieve(id)
  const found = await client.chat.completions.list({ metadata: { rating: 'good' } })
  assert.deepEqual(
    found.data.map((chat: any) => chat.id),
    [id],
  )
  assert.equal((await client.chat.completions.messages.list(id)).data[0].content, messages[0].content)
  await client.chat.completions.delete(id)
  await client.models.retrieve(model)
}
