// Names of files in an adapter's folder, for those who need no code that reads or writes them.

export const CONFIG_FILE = 'adapter_config.json'
export const CARD_FILE = 'README.md'
export const TEMPLATE_FILE = 'chat_template.jinja'
/** The marker of a folder that lowrank's training wrote. */
export const MARKER_FILE = 'lowrank.json'
