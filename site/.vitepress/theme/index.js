// VitePress' own theme in the colors and type of the project's pages.

import DefaultTheme from 'vitepress/theme-without-fonts'
import '../../../web/look.css'
import './style.css'

export default DefaultTheme
