// Turns a sound into a speech model's input: how strong each of some bands of frequencies is at each time, as
// transformers' WhisperFeatureExtractor computes it from preprocessor_config.json.

import { DataError, FormatError } from '../base/errors.js'
import { Fourier } from './fourier.js'

/** A sound of one channel. */
export interface Sound {
  /** Between −1 and 1. */
  readonly samples: ArrayLike<number>
  /** Samples in a second. */
  readonly rate: number
}

/** Makes a model's input of sounds. */
export interface LogMel {
  readonly bands: number
  readonly times: number
  /**
   * (bands, times). A shorter sound is followed by silence, and a longer one is cut.
   *
   * @throws DataError naming a sound with another rate
   */
  features(sound: Sound, where: string): { readonly values: Float32Array; readonly isCut: boolean }
}

/** Highest frequency of the bands, in hertz. */
const HIGHEST = 8000
/** Smallest strength: its logarithm is −10. */
const FLOOR = 1e-10
/** Powers of ten below the strongest. Weaker values count as this much weaker. */
const RANGE = 8

/**
 * Reads preprocessor_config.json.
 *
 * @throws FormatError for a file without one of its lengths
 */
export function logMel(config: Readonly<Record<string, unknown>>, where: string): LogMel {
  const numberOf = (key: string, fallback: number): number => {
    const value = config[key] ?? fallback
    if (Number.isSafeInteger(value) && (value as number) > 0) return value as number
    throw new FormatError({ where: `${where}, ${key}`, what: 'not a length', got: JSON.stringify(value) })
  }
  const bands = numberOf('feature_size', 80)
  const rate = numberOf('sampling_rate', 16000)
  const hop = numberOf('hop_length', 160)
  const width = numberOf('n_fft', 400)
  const count = numberOf('chunk_length', 30) * rate
  const times = Math.floor(count / hop)
  const fourier = new Fourier(width)
  const window = Float64Array.from({ length: width }, (_, i) => 0.5 - 0.5 * Math.cos((2 * Math.PI * i) / width))
  const filters = melFilters(bands, Math.floor(width / 2) + 1, rate)
  const frame = new Float64Array(width)
  const power = new Float64Array(Math.floor(width / 2) + 1)
  return {
    bands,
    times,
    features({ samples, rate: own }, place) {
      if (own !== rate) {
        throw new DataError({
          where: place,
          what: 'it has another rate than the model takes',
          expected: `${rate} samples in a second`,
          got: String(own),
          hint: 'Convert the sound first, such as by ffmpeg -ar',
        })
      }
      const length = Math.min(samples.length, count)
      const sample = (index: number) => (index < length ? samples[index] : 0)
      const values = new Float32Array(bands * times)
      let most = Number.NEGATIVE_INFINITY
      for (let time = 0; time < times; time++) {
        const start = time * hop - Math.floor(width / 2)
        let isSilent = true
        for (let i = 0; i < width; i++) {
          frame[i] = sample(mirrored(start + i, count)) * window[i]
          isSilent &&= frame[i] === 0
        }
        if (isSilent) power.fill(0)
        else fourier.power(frame, power)
        for (let band = 0; band < bands; band++) {
          const { first, weights } = filters[band]
          let sum = 0
          for (let i = 0; i < weights.length; i++) sum += weights[i] * power[first + i]
          const level = Math.log10(Math.max(FLOOR, sum))
          values[band * times + time] = level
          most = Math.max(most, level)
        }
      }
      for (let i = 0; i < values.length; i++) values[i] = (Math.max(values[i], most - RANGE) + 4) / 4
      return { values, isCut: samples.length > count }
    },
  }
}

/** A place before the first or behind the last sample, seen in a mirror there. */
function mirrored(index: number, count: number): number {
  const inside = Math.abs(index)
  return inside < count ? inside : 2 * (count - 1) - inside
}

/** The weights of a band for the frequencies from `first` on. */
interface Filter {
  readonly first: number
  readonly weights: Float64Array
}

/** Triangles between frequencies that are evenly spaced in Slaney's mel scale, each of the same area. */
function melFilters(bands: number, frequencies: number, rate: number): Filter[] {
  const highest = mel(HIGHEST)
  const corners = Array.from({ length: bands + 2 }, (_, i) => hertz((highest * i) / (bands + 1)))
  const step = Math.floor(rate / 2) / (frequencies - 1)
  return Array.from({ length: bands }, (_, band) => {
    const [left, middle, right] = corners.slice(band, band + 3)
    const all = Array.from({ length: frequencies }, (_, i) => {
      const frequency = i * step
      const height = Math.min((frequency - left) / (middle - left), (right - frequency) / (right - middle))
      return (Math.max(0, height) * 2) / (right - left)
    })
    const first = Math.max(
      0,
      all.findIndex((weight) => weight > 0),
    )
    const last = all.findLastIndex((weight) => weight > 0)
    return { first, weights: Float64Array.from(all.slice(first, last + 1)) }
  })
}

/** Slaney's scale: straight up to 1000 hertz, and logarithmic above. */
const STRAIGHT = { hertz: 1000, mel: 15 }
const LOG_STEP = Math.log(6.4) / 27

function mel(frequency: number): number {
  if (frequency < STRAIGHT.hertz) return (3 * frequency) / 200
  return STRAIGHT.mel + Math.log(frequency / STRAIGHT.hertz) / LOG_STEP
}

function hertz(value: number): number {
  if (value < STRAIGHT.mel) return (200 * value) / 3
  return STRAIGHT.hertz * Math.exp(LOG_STEP * (value - STRAIGHT.mel))
}
