// The site's settings. ../build.mjs makes its pages from docs/, the docstrings and the error classes. A dead link stops
// the build.

import { readFileSync } from 'node:fs'

const base = process.env.SITE_BASE ?? '/'
const home = 'https://lowrank.github.io/lowrank/'
const description = 'LoRA for TypeScript: train, run, merge and serve adapters of ONNX models in Node and the browser.'
const source = 'https://github.com/lowrank/lowrank'

const { pages, api } = JSON.parse(readFileSync(new URL('../out/pages/outline.json', import.meta.url), 'utf8'))

export default {
  title: 'lowrank',
  description,
  srcDir: 'out/pages',
  outDir: 'out/site',
  base,
  // Links with .html work on hosts that do not rewrite addresses.
  cleanUrls: false,
  // ../build.mjs copies the page of web/ there.
  ignoreDeadLinks: ['/playground/'],
  lastUpdated: false,
  // VitePress marks the main part of all pages but the first.
  transformHtml: (code) => code.replace(/<div (?=class="VPContent is-home")/, '<div role="main" '),
  head: [
    ['link', { rel: 'icon', type: 'image/svg+xml', href: `${base}mark.svg` }],
    ['meta', { property: 'og:title', content: 'lowrank: LoRA for TypeScript' }],
    ['meta', { property: 'og:description', content: description }],
    ['meta', { property: 'og:image', content: `${home}card.png` }],
    ['meta', { name: 'twitter:card', content: 'summary_large_image' }],
  ],
  markdown: {
    html: false,
    theme: { light: 'github-light-high-contrast', dark: 'github-dark-high-contrast' },
    config(md) {
      // Vue would compute what stands between {{ and }}.
      const { code_inline: inline } = md.renderer.rules
      md.renderer.rules.code_inline = (...args) => inline(...args).replace('<code', '<code v-pre')
    },
  },
  themeConfig: {
    logo: '/mark.svg',
    editLink: {
      // VitePress writes this function into the pages as text, so it uses no names from outside.
      pattern: ({ filePath }) => {
        const made = filePath.startsWith('api/') ? 'tree/main/src' : filePath === 'errors.md' && 'edit/main/src/core/base/errors.ts'
        return `https://github.com/lowrank/lowrank/${made || `edit/main/docs/${filePath}`}`
      },
      text: 'Edit this page',
    },
    search: {
      provider: 'local',
      // Guides come before the API.
      options: { miniSearch: { searchOptions: { boostDocument: (id) => (id.includes('/api/') ? 0.1 : 1) } } },
    },
    nav: [
      { text: 'Web', link: '/web' },
      { text: 'Backend', link: '/backend' },
      { text: 'Python', link: '/python' },
      { text: 'API', link: '/api/' },
      { text: 'Speed', link: '/speed' },
      { text: 'Errors', link: '/errors' },
    ],
    sidebar: { '/api/': api, '/': pages },
    socialLinks: [{ icon: 'github', link: source }],
    outline: [2, 3],
  },
}
