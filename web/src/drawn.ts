// Pictures to learn from, drawn on the spot: sunsets and seas.

import type { Picture } from './data.js'

const SIZE = 48
/** Colors of each label: hues in degrees of the ground and of what lies on it. */
const SCENES = { sunset: [15, 48], sea: [205, 190] }

export async function drawnPictures(count: number): Promise<Picture[]> {
  const canvas = new OffscreenCanvas(SIZE, SIZE)
  const pen = canvas.getContext('2d')!
  const pictures: Picture[] = []
  for (const [label, [ground, form]] of Object.entries(SCENES)) {
    for (let i = 0; i < count; i++) {
      pen.fillStyle = `hsl(${ground + ((i * 7) % 24) - 12} 85% ${40 + (i % 5) * 6}%)`
      pen.fillRect(0, 0, SIZE, SIZE)
      pen.fillStyle = `hsl(${form} 80% 75%)`
      for (let part = 0; part < 3; part++)
        if (label === 'sea') pen.fillRect((i * 5 + part * 11) % 36, 14 + part * 10, 12, 2)
        else pen.fillRect(12 + ((i * 9) % 20) - part, 22 + part * 5, 14 + 2 * part, 3)
      pictures.push({ label, file: new File([await canvas.convertToBlob()], `${label}-${i}.png`) })
    }
  }
  return pictures
}
