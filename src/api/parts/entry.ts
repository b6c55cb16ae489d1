// Parts of lowrank for servers and other programs of your own: what checks options and reads prompts.

/** @module lowrank/parts */

export { requireTokenizer } from '../../model/model-folder.js'
export { isMix } from '../../run/adapters/choice.js'
export { SAMPLING_OPTIONS, STREAM_OPTIONS } from '../../run/gen/options.js'
export { NO_ROOM } from '../../run/generate/prompts.js'
export { resolveSampling } from '../../run/generate/sampling.js'
export { checkedSchema } from '../../run/schemas/schemas.js'
