// When two names mean one module: versions of transformers put other modules around a language model or a vision tower.

/** Modules that hold a whole model, and that some versions leave out. */
const AROUND = new Set(['model', 'language_model', 'text_model', 'vision_model', 'vision_tower'])

const VISION = new Set(['vision_model', 'vision_tower', 'vision_encoder', 'visual'])

/** In models that also read pictures. */
const LANGUAGE = new Set(['language_model', 'text_model'])

export function endAlike(a: string, b: string): boolean {
  return a === b || a.endsWith(`.${b}`) || b.endsWith(`.${a}`)
}

/** The part of a model of texts and pictures that a name tells. */
export function sideOf(name: string): 'vision' | 'language' | undefined {
  const segments = name.split('.')
  if (segments.some((segment) => VISION.has(segment))) return 'vision'
  return segments.some((segment) => LANGUAGE.has(segment)) ? 'language' : undefined
}

function core(name: string): string {
  const own = name
    .split('.')
    .filter((segment) => !AROUND.has(segment))
    .join('.')
  return own === '' ? name : `${sideOf(name) === 'vision'}:${own}`
}

/** The wrapper that sentence-transformers puts around its first module. */
export function withoutWrapper(module: string): string {
  return module.replace(/^0\.auto_model\./, '')
}

/** Names that transformers 5 gives to modules of vision transformers, by those of transformers 4. */
const RENAMED: readonly (readonly [RegExp, string])[] = [
  [/(^|\.)encoder\.layer\.(?=\d+\.)/, '$1layers.'],
  [/\.attention\.(?:attention|self)\.(query|key|value)$/, '.attention.$1'],
  [/\.attention\.query$/, '.attention.q_proj'],
  [/\.attention\.key$/, '.attention.k_proj'],
  [/\.attention\.value$/, '.attention.v_proj'],
  [/\.attention\.output\.dense$/, '.attention.o_proj'],
  [/(\.\d+)\.intermediate\.dense$/, '$1.mlp.fc1'],
  [/(\.\d+)\.output\.dense$/, '$1.mlp.fc2'],
  // Qwen3.5 by onnxruntime-genai.
  [/\.linear_attn\.in_proj_(qkv|z|a|b)$/, '.linear_attn.$1_proj'],
  // LFM2, as in `nameInPyTorch`.
  [/\.feed_forward\.w1$/, '.mlp.gate_proj'],
  [/\.feed_forward\.w3$/, '.mlp.up_proj'],
  [/\.feed_forward\.w2$/, '.mlp.down_proj'],
  [/\.self_attn\.out_proj$/, '.self_attn.o_proj'],
  [/\.self_attn\.(q|k)_layernorm$/, '.self_attn.$1_norm'],
]

/** onnxruntime-genai calls modules of LFM2 as those of Llama. */
const OF_LFM2: Readonly<Record<string, string>> = {
  'mlp.gate_proj': 'feed_forward.w1',
  'mlp.up_proj': 'feed_forward.w3',
  'mlp.down_proj': 'feed_forward.w2',
  'self_attn.o_proj': 'self_attn.out_proj',
}

/** The name that a module of a graph has in transformers. `type`: model_type of config.json. */
export function nameInPyTorch(type: unknown, name: string): string {
  if (type !== 'lfm2') return name
  const [module, layer] = [name.split('.').slice(0, -2), name.split('.').slice(-2).join('.')]
  return [...module, OF_LFM2[layer] ?? layer].join('.')
}

function newest(name: string): string {
  return RENAMED.reduce((own, [pattern, replacement]) => own.replace(pattern, replacement), name)
}

/**
 * Its own, else the one name that ends alike, else one that differs in modules around it, in a doubled Sequential, or
 * in the version of transformers.
 */
export function nameOfModule(names: ReadonlySet<string>, name: string): string | undefined {
  if (names.has(name)) return name
  const module = withoutWrapper(name)
  if (names.has(module)) return module
  const all = [...names]
  const near = all.filter((other) => endAlike(other, module))
  if (near.length > 0) return near.length === 1 ? near[0] : undefined
  const own = core(module)
  const alike = all.filter((other) => core(other) === own)
  if (alike.length > 0) return alike.length === 1 ? alike[0] : undefined
  const doubled = all.filter((other) => {
    // PyTorch's exporter names a Sequential twice: merger.mlp.mlp.0 is merger.mlp.0.
    const single = other.replace(/(^|\.)([^.]+)\.\2(?=\.\d+(\.|$))/g, '$1$2')
    return single !== other && `.${module}`.endsWith(`.${single}`)
  })
  if (doubled.length > 0) return doubled.length === 1 ? doubled[0] : undefined
  const wanted = newest(module)
  const versions = all.filter((other) => endAlike(newest(other), wanted))
  return versions.length === 1 ? versions[0] : undefined
}

export function ofModule<T extends { readonly name: string }>(entries: readonly T[], module: string): T[] {
  const own = nameOfModule(new Set(entries.map(({ name }) => name)), module)
  return own === undefined ? [] : entries.filter(({ name }) => name === own)
}
