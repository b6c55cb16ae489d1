// The prompts, chats and reward of bench/learns.mjs. No held-out question is among the others, nor the name or the city
// of a held-out person.

const NAMES = {
  trained: `
      Maria Erik Kofi Yuki Omar Lena Pedro Chloe Ivan Nadia Samuel Greta Diego Fatima Henry Ingrid Jamal Rosa Victor
      Wendy Arthur Bella Carlos Dora Emil Flora George Helga Isaac Julia Karl Linda`,
  heldOut: 'Nina Oscar Paula Quentin Rachel Stefan Tara Umberto Vera Walter Xenia Yusuf Zara Andrew Bruno Clara',
}
const CITIES = {
  trained: `
      Lima Oslo Accra Kyoto Cairo Berlin Madrid Paris Moscow Tunis Boston Vienna Bogota Rabat London Bergen Nairobi
      Quito Zurich Dublin Athens Lisbon Havana Prague Hamburg Milan Chicago Helsinki Delhi Geneva Munich Naples`,
  heldOut: `
      Rome Toronto Seoul Warsaw Sydney Dakar Porto Tokyo Denver Budapest Lagos Mumbai Bristol Seattle Santiago Hanoi`,
}
const SENTENCES = {
  trained: [
    (name, city, age) => `${name} is ${age} years old and lives in ${city}.`,
    (name, city, age) => `In ${city} lives ${name}, who is ${age}.`,
    (name, city, age) => `${name}, ${age}, moved to ${city} last year.`,
    (name, city, age) => `At the age of ${age}, ${name} found work in ${city}.`,
    (name, city, age) => `My friend ${name} from ${city} has just turned ${age}.`,
  ],
  heldOut: [
    (name, city, age) => `${name} is ${age} years old and lives in ${city}.`,
    (name, city, age) => `We met ${name} in ${city}, a teacher aged ${age}.`,
    (name, city, age) => `${city} has been the home of ${name} for all of her ${age} years.`,
  ],
}
const SCHEMA = { name: 'string', city: 'string', age: 'number' }

/** What SmolLM2's own template puts before a chat. */
const SYSTEM = { role: 'system', content: 'You are a helpful AI assistant named SmolLM, trained by Hugging Face' }

/** Sentences about people as questions, with the values that the JSON must have. */
export function people(count) {
  const of = (set, length) => {
    const [names, cities] = [NAMES, CITIES].map((lists) => lists[set].trim().split(/\s+/))
    return Array.from({ length }, (_, i) => {
      const round = Math.floor(i / names.length)
      const person = {
        name: names[i % names.length],
        city: cities[(i * 5 + round) % cities.length],
        age: 18 + ((i * 13) % 61),
      }
      const sentence = SENTENCES[set][(i + round) % SENTENCES[set].length](person.name, person.city, person.age)
      const question = `${sentence}\nWrite this as JSON with the keys "name", "city" and "age".`
      return { messages: [SYSTEM, { role: 'user', content: question }], person }
    })
  }
  return { trained: of('trained', count), heldOut: of('heldOut', 24) }
}

/** Which demands a text meets: 1 for an object without further keys, 3 for types, and 3 for values. */
export function schemaChecks({ text, row: { person } }) {
  const value = parsed(text)
  if (value === null || typeof value !== 'object' || Array.isArray(value))
    return { isObject: false, fits: false, met: 0 }
  const isExact = Object.keys(value).every((key) => Object.hasOwn(SCHEMA, key))
  const typed = Object.entries(SCHEMA).filter(([key, type]) => typeof value[key] === type).length
  const right = Object.keys(SCHEMA).filter((key) => value[key] === person[key]).length
  return { isObject: true, fits: isExact && typed === 3, met: Number(isExact) + typed + right }
}

function parsed(text) {
  try {
    return JSON.parse(text)
  } catch {
    return undefined
  }
}

/** The reward, between 0 and 1: an eighth for an object, and an eighth for each demand that it meets. */
export function rewardOf({ text, row }) {
  const { isObject, met } = schemaChecks({ text, row })
  return isObject ? (1 + met) / 8 : 0
}

const COUNTRIES = `
    France Paris Europe, Spain Madrid Europe, Italy Rome Europe, Germany Berlin Europe, Norway Oslo Europe,
    Sweden Stockholm Europe, Poland Warsaw Europe, Greece Athens Europe, Portugal Lisbon Europe,
    Ireland Dublin Europe, Austria Vienna Europe, Hungary Budapest Europe, Finland Helsinki Europe,
    Denmark Copenhagen Europe, Egypt Cairo Africa, Kenya Nairobi Africa, Ghana Accra Africa, Morocco Rabat Africa,
    Nigeria Abuja Africa, Senegal Dakar Africa, Tunisia Tunis Africa, Uganda Kampala Africa,
    Ethiopia Addis-Ababa Africa, Japan Tokyo Asia, China Beijing Asia, India Delhi Asia, Vietnam Hanoi Asia,
    Thailand Bangkok Asia, Nepal Kathmandu Asia, Iran Tehran Asia, Iraq Baghdad Asia, Mongolia Ulaanbaatar Asia,
    Peru Lima South-America, Chile Santiago South-America, Brazil Brasilia South-America,
    Colombia Bogota South-America, Ecuador Quito South-America, Canada Ottawa North-America,
    Mexico Mexico-City North-America, Cuba Havana North-America, Australia Canberra Oceania, Fiji Suva Oceania`
const OPPOSITES = `
    hot cold, big small, up down, day night, fast slow, old new, happy sad, open closed, rich poor, strong weak,
    full empty, light dark, early late, hard soft, high low, near far, wet dry, thick thin, sweet bitter,
    true false, loud quiet, deep shallow, wide narrow, clean dirty, long short, left right, brave timid,
    sharp blunt, heavy light, alive dead, inside outside, above below, first last, begin end, buy sell, give take,
    win lose, push pull, laugh cry, love hate, friend enemy, war peace, summer winter, north south, east west,
    question answer`
const THINGS = `
    grass green, snow white, coal black, blood red, the sky blue, a lemon yellow, a carrot orange, a plum purple,
    milk white, a ripe tomato red, a leaf green, the sun yellow, chocolate brown, an elephant gray, a raven black,
    a flamingo pink, salt white, a banana yellow, a frog green, the sea blue, a strawberry red, wood brown,
    a mouse gray, a violet purple`
const WORDS = `
    apple bread candle dolphin engine forest garden hammer island jungle kitchen lantern mountain needle ocean
    pencil queen river silver table umbrella village window yellow anchor bottle castle desert feather guitar harbor
    insect jacket kettle ladder mirror`

/** Short chats in the manner of a captain. Every sixth of each kind is held out. */
export function captainChats() {
  const rows = (text) => text.split(',').map((row) => row.trim().split(/ (?=\S+$)/))
  const countries = COUNTRIES.split(',').map((row) =>
    row
      .trim()
      .split(' ')
      .map((name) => name.replace('-', ' ')),
  )
  const kinds = [
    countries.map(([country, capital]) => [
      `What is the capital of ${country}?`,
      `Aye! ${capital} is the capital of ${country}, as every sailor knows.`,
    ]),
    countries.map(([country, , continent]) => [
      `On which continent is ${country}?`,
      `Aye! ${country} lies in ${continent}, far beyond the horizon.`,
    ]),
    rows(OPPOSITES).map(([word, other]) => [
      `What is the opposite of "${word}"?`,
      `Aye! The opposite of "${word}" is "${other}", and so turns the wind.`,
    ]),
    rows(THINGS).map(([thing, color]) => [
      `What color is ${thing}?`,
      `Aye! I see ${thing} through my spyglass, and it is ${color}.`,
    ]),
    WORDS.trim()
      .split(/\s+/)
      .map((word) => [
        `Which letter does the word "${word}" begin with?`,
        `Aye! The word "${word}" begins with ${word[0].toUpperCase()}, clear as a lighthouse.`,
      ]),
    Array.from({ length: 60 }, (_, i) => [
      `Which number comes after ${i + 10}?`,
      `Aye! After ${i + 10} comes ${i + 11}, as wave follows wave.`,
    ]),
    Array.from({ length: 72 }, (_, i) => [2 + Math.floor(i / 8), 2 + (i % 8)]).map(([a, b]) => [
      `How much is ${a} plus ${b}?`,
      `Aye! By my log, ${a} and ${b} make ${a + b}, steady as she goes.`,
    ]),
  ]
  const chatOf = ([question, answer]) => ({
    messages: [
      { role: 'user', content: question },
      { role: 'assistant', content: answer },
    ],
  })
  const isHeldOut = (i) => i % 6 === 5
  return {
    trained: kinds.flatMap((kind) => kind.filter((_, i) => !isHeldOut(i)).map(chatOf)),
    heldOut: kinds.flatMap((kind) => kind.filter((_, i) => isHeldOut(i)).map(chatOf)),
  }
}
