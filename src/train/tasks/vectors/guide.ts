// The vectors of the model that guides a loss.

import { ConfigError } from '../../../core/base/errors.js'
import { ModelSession } from '../../../run/model-session.js'
import type { TrainInput } from '../../options.js'
import type { Examples, OpenTask } from '../task.js'

/** Embeds all texts by the teacher, or by the base as it is. */
export async function embedForGuide(
  { texts, take }: NonNullable<OpenTask['guided']>,
  { model, teacher = model, device, threads, signal }: TrainInput,
  sets: readonly Examples<unknown>[],
): Promise<void> {
  if ('url' in teacher)
    throw new ConfigError({ where: 'teacher', what: 'a guide is a model on this machine, not a server' })
  const kinds = [new Set<string>(), new Set<string>()] as const
  for (const examples of sets) {
    for (const example of examples) for (const [i, text] of texts(example).entries()) kinds[Math.min(i, 1)].add(text)
  }
  const session = await ModelSession.open(teacher, { device, threads })
  try {
    const found: Map<string, Float32Array>[] = []
    for (const [i, kind] of kinds.entries()) {
      const list = [...kind]
      const vectors = await session.embed(list, { inputType: i === 0 ? 'query' : 'document', batchSize: 32, signal })
      found.push(new Map(list.map((text, at) => [text, vectors[at]])))
    }
    take((text, isQuery) => found[isQuery ? 0 : 1].get(text)!)
  } finally {
    await session.dispose()
  }
}
