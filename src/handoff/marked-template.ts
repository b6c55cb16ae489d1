// A chat template that marks what the assistant writes, as transformers' {% generation %} does. Any template can be
// marked from outside: an answer is what its text adds to the prompt for it.

const MARKS = /\{%-?\s*generation\b/

const WHOLE = 'lowrank_whole'

/** Writes the same text as before, as long as the text of the first messages begins the text of all. */
export function markedTemplate(template: string): string {
  if (MARKS.test(template)) return template
  // A print at both ends keeps Jinja from trimming the text beside the tags; the last line break it drops anyway.
  return `{% macro ${WHOLE}(messages, add_generation_prompt) %}{{ '' }}${template.replace(/\n$/, '')}{{ '' }}{% endmacro -%}
{%- set lowrank = namespace(done=0) -%}
{%- for message in messages -%}
{%- if message.role == 'assistant' and loop.index0 > 0 -%}
{%- set before = ${WHOLE}(messages[:loop.index0], true) -%}
{%- set after = ${WHOLE}(messages[:loop.index], false) -%}
{{- before[lowrank.done:] -}}
{%- generation -%}{{- after[before | length:] -}}{%- endgeneration -%}
{%- set lowrank.done = after | length -%}
{%- endif -%}
{%- endfor -%}
{{- ${WHOLE}(messages, add_generation_prompt | default(false))[lowrank.done:] -}}
`
}
