// Opens dist/ in a window. Pages cannot fetch from file: URLs, so the page and its model come from app: URLs.

const { app, BrowserWindow, net, protocol } = require('electron')
const path = require('node:path')
const { pathToFileURL } = require('node:url')

const dist = path.join(__dirname, 'dist')
protocol.registerSchemesAsPrivileged([
  { scheme: 'app', privileges: { standard: true, secure: true, supportFetchAPI: true } },
])

app.whenReady().then(() => {
  protocol.handle('app', (request) => {
    const file = path.join(dist, decodeURIComponent(new URL(request.url).pathname))
    if (!file.startsWith(dist + path.sep)) return new Response('', { status: 404 })
    return net.fetch(pathToFileURL(file).href, { headers: request.headers })
  })
  new BrowserWindow().loadURL('app://page/index.html')
})
app.on('window-all-closed', () => app.quit())
