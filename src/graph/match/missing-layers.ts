// What is said of an adapter's layers that a model has no module for.

import { MismatchError, nearMisses } from '../../base/errors.js'

/** How many names of missing layers a message has. */
const SHOWN = 5

/**
 * @param modules names of the linear layers that there are
 * @param count number of the adapter's layers
 * @param graphs names of the model's graphs, where it has several
 */
export function missingError(
  missing: readonly string[],
  modules: Iterable<string>,
  count: number,
  graphs: readonly string[] = [],
): MismatchError {
  const near = nearMisses(missing[0], modules)
  const shown = missing.slice(0, SHOWN).join(', ') + (missing.length > SHOWN ? `, … (${missing.length} in all)` : '')
  const lack = graphs.length > 1 ? `none of the model's graphs (${graphs.join(', ')}) has a` : 'the model has no'
  const it = missing.length === 1 ? 'it' : 'them'
  const hints = near.length > 0 ? [`Nearest to the first: ${near.join(', ')}`] : []
  if (missing.length === count && near.length === 0) {
    hints.push("None of the adapter's layers is in this model: give the model that the adapter was trained for")
  }
  if (missing.length < count) {
    hints.push(
      `The adapter's other layers are there, so that the export may have dropped ${it}, as an export without a head drops the pooler: use an export that has ${it}, or leave ${it} out with allowMissing (--allow-missing)`,
    )
  }
  return new MismatchError({
    where: 'adapter',
    what: `${lack} module for ${shown}`,
    ...(hints.length > 0 ? { hint: hints.join('. ') } : {}),
  })
}
