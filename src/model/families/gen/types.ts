// Made by scripts/generate/families.mjs: the types of models of all families.
import type { ModelTypes } from '../family.js'
import { TYPES as aria } from '../aria.js'
import { TYPES as bart } from '../bart.js'
import { TYPES as bert } from '../bert.js'
import { TYPES as deberta } from '../deberta.js'
import { TYPES as decoders } from '../decoders.js'
import { TYPES as detr } from '../detr.js'
import { TYPES as gemma } from '../gemma.js'
import { TYPES as gpt_oss } from '../gpt-oss.js'
import { TYPES as gpt2 } from '../gpt2.js'
import { TYPES as granite } from '../granite.js'
import { TYPES as idefics } from '../idefics.js'
import { TYPES as lfm2 } from '../lfm2.js'
import { TYPES as llava } from '../llava.js'
import { TYPES as modernbert } from '../modernbert.js'
import { TYPES as olmo3 } from '../olmo3.js'
import { TYPES as phi3 } from '../phi3.js'
import { TYPES as qwen } from '../qwen.js'
import { TYPES as segformer } from '../segformer.js'
import { TYPES as vit } from '../vit.js'

export const TYPES: ModelTypes = {
  ...aria,
  ...bart,
  ...bert,
  ...deberta,
  ...decoders,
  ...detr,
  ...gemma,
  ...gpt_oss,
  ...gpt2,
  ...granite,
  ...idefics,
  ...lfm2,
  ...llava,
  ...modernbert,
  ...olmo3,
  ...phi3,
  ...qwen,
  ...segformer,
  ...vit,
}
