// The site's settings. ../build.mjs makes its pages from docs/, the docstrings and the error classes. A dead link stops
// the build.

import { readFileSync } from 'node:fs'

const { pages, api } = JSON.parse(readFileSync(new URL('../out/pages/outline.json', import.meta.url), 'utf8'))

export default {
  title: 'lowrank',
  description: 'LoRA for TypeScript: train, run, merge and serve adapters of ONNX models in Node and the browser.',
  srcDir: 'out/pages',
  outDir: 'out/site',
  base: process.env.SITE_BASE ?? '/',
  cleanUrls: true,
  // ../build.mjs copies the page of web/ there.
  ignoreDeadLinks: ['/playground/'],
  lastUpdated: false,
  head: [['link', { rel: 'icon', type: 'image/svg+xml', href: `${process.env.SITE_BASE ?? '/'}mark.svg` }]],
  markdown: { html: false },
  themeConfig: {
    logo: '/mark.svg',
    editLink: { pattern: 'https://github.com/lowrank/lowrank/edit/main/docs/:path' },
    search: { provider: 'local' },
    nav: [
      { text: 'Guide', link: '/first-adapter' },
      { text: 'API', link: '/api/' },
      { text: 'Speed', link: '/speed' },
      { text: 'Errors', link: '/errors' },
    ],
    sidebar: { '/api/': api, '/': pages },
    socialLinks: [{ icon: 'github', link: 'https://github.com/lowrank/lowrank' }],
    outline: [2, 3],
  },
}
