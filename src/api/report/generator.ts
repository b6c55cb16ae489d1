// The line by which a command recognizes a report that it wrote. In its own file, so that checking does not load the
// page.

export const generatorOf = (command: string): string => `<meta name="generator" content="lowrank ${command}">`
