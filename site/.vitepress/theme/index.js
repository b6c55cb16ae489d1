// VitePress' own theme in the colors and type of the project's pages, with the demo in the empty half of the first view.

import DefaultTheme from 'vitepress/theme-without-fonts'
import { h } from 'vue'
import '../../../web/look.css'
import Demo from './Demo.vue'
import './style.css'

export default {
  extends: DefaultTheme,
  Layout: () => h(DefaultTheme.Layout, null, { 'home-hero-image': () => h(Demo) }),
}
