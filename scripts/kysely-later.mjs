/**
 * A plugin of Vite: loads kysely with the modules that need it, which the program loads later. If all modules are one
 * file, the import of this optional package would come first, and nothing would start without it.
 */
export const kyselyLater = {
  name: 'kysely-later',
  enforce: 'post',
  transform(code) {
    if (!code.includes('kysely')) return undefined
    return code.replace(/^import (\{[^}]*\}) from ['"]kysely['"];?$/gm, "const $1 = await import('kysely');")
  },
}
