// lowrank/parts: what a server of your own needs besides `lowrank`. lowrank/server is built from the two alone.

/** @module lowrank/parts */

export { gigabytes } from '../../model/memory.js'
export { requireTokenizer } from '../../model/model-folder.js'
export { MODEL, NAMED_ADAPTERS, SOURCE } from '../../model/source-values.js'
export type { CallForm } from '../../model/text/calls/call.js'
export { callFormNamed, functionsOf } from '../../model/text/calls/forms.js'
export { checkKnownTools } from '../../model/text/calls/known-tools.js'
export { type AnswerPart, AnswerReader, type ToolCall } from '../../model/text/calls/reader.js'
export { callStructure, noCalls } from '../../model/text/calls/tags.js'
export { isMix } from '../../run/adapters/choice.js'
export { SAMPLING_OPTIONS, STREAM_OPTIONS } from '../../run/gen/options.js'
export { resolveSampling } from '../../run/generate/sampling.js'
export { fitsSchema } from '../../run/schemas/fits.js'
export { checkedSchema, heldSchema } from '../../run/schemas/schemas.js'
export { openGrader } from '../../train/loop/graders/grader.js'
export { RUN_FILES } from '../../train/saved/run-folder.js'
export { memoryLimits } from '../platform/memory.js'
export { openFolder, openTarget } from '../sources.js'
export { type TrainingNeeds, trainingNeeds } from './training-needs.js'
