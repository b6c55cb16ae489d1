// The line by which a command knows its own report. Apart, so that the check does not load the page.

export const generatorOf = (command: string): string => `<meta name="generator" content="lowrank ${command}">`
