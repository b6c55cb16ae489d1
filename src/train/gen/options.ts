// Made by scripts/generate/options.mjs from the types. Do not edit.


export const TRAIN_SETTINGS_DEFAULTS = {
  epochs: 1,
  maxSteps: undefined,
  batchSize: 8,
  gradientAccumulation: 1,
  maxLength: undefined,
  learningRate: undefined,
  schedule: 'cosine',
  warmupRatio: undefined,
  warmupSteps: undefined,
  loraPlusRatio: undefined,
  weightDecay: 0,
  maxGradNorm: 1,
  device: undefined,
  threads: undefined,
  memory: 'auto',
  newHead: false,
  saveEvery: undefined,
  packing: false,
  evalEvery: undefined,
  keep: 'last',
  bestMetric: 'loss',
  earlyStopping: undefined,
} as const

