// Writes the rewards of train.py. Graders judge there with the Python packages whose numbers they have here. A function
// of TypeScript or a model that judges has no such form, so the script has a function to fill in for it.

import type { Grader } from '../train/graders.js'
import type { Reward } from '../train/rewards.js'

export interface HandedReward {
  readonly name: string
  readonly weight: number
  /** null for a function. */
  readonly grader: Grader | null
}

export function handedRewards(rewards: readonly Reward[], weights: Readonly<Record<string, number>> = {}) {
  return rewards.map((reward, i): HandedReward => {
    const { name, grader } = reward as Reward & { readonly grader?: Grader }
    return { name: name || `reward_${i + 1}`, weight: weights[name] ?? 1, grader: grader ? inPython(grader) : null }
  })
}

/** Writes powers in the formula as Python does: `**` instead of `^`. */
function inPython(grader: Grader): Grader {
  if (grader.type !== 'multi') return grader
  return { ...grader, calculate_output: grader.calculate_output.trim().replaceAll('^', '**') }
}

/** Names of the rewards, and of graders in them, for which `judge` has to be filled in. */
export function leftToFillIn(rewards: readonly HandedReward[]): string[] {
  const isLeft = ({ grader }: Pick<HandedReward, 'grader'>) =>
    grader === null || grader.type.endsWith('_model') || metricOf(grader) === 'cosine'
  return singleGraders(rewards)
    .filter(isLeft)
    .map(({ name }) => name)
}

function singleGraders(rewards: readonly HandedReward[]): Pick<HandedReward, 'name' | 'grader'>[] {
  return rewards.flatMap((reward): Pick<HandedReward, 'name' | 'grader'>[] => {
    if (reward.grader?.type !== 'multi') return [reward]
    return Object.entries(reward.grader.graders).map(([name, grader]) => ({ name, grader }))
  })
}

function metricOf(grader: Grader | null): string | undefined {
  return grader?.type === 'text_similarity' ? grader.evaluation_metric : undefined
}

const PACKAGES: readonly (readonly [metric: RegExp, requirement: string])[] = [
  [/^fuzzy_match$/, 'rapidfuzz==3.14.6'],
  [/^bleu$/, 'sacrebleu==2.6.0'],
  [/^gleu$/, 'nltk==3.10.4'],
  [/^rouge_/, 'rouge-score==0.1.2'],
]

/** Returns the Python packages that train.py needs to compute the similarities of these rewards. */
export function packagesOf(rewards: readonly HandedReward[]): string[] {
  const metrics = singleGraders(rewards).map(({ grader }) => metricOf(grader) ?? '')
  return PACKAGES.filter(([pattern]) => metrics.some((metric) => pattern.test(metric))).map(([, name]) => name)
}

/** @param left see {@link leftToFillIn} */
export function rewardsScript(left: readonly string[]): string {
  return GRADERS.replace('{JUDGE}', () => (left.length === 0 ? '' : toFillIn(left)))
}

const toFillIn = (names: readonly string[]) => `
# ======================================================================================================================
# FILL IN: lowrank judged with ${names.map((name) => JSON.stringify(name)).join(', ')}.
# Functions of TypeScript, and models that judge, cannot be handed off.
# ======================================================================================================================
def judge(name, grader, prompt, text, item):
    """Gives a number for a text, or None if it cannot be judged. A higher number is better.

    name is the reward's, grader its object (None for a function), prompt a text or messages, item the record.
    """
    raise NotImplementedError(f"train.py: write into judge() how {name} judges a text")


`

const GRADERS = `class NoPart(Exception):
    """The text is not the JSON that a grader asks for."""


def filled(template, item, text):
    """A grader's text with its places filled."""

    def value(place):
        root, *path = re.findall(r"[^.[\\]\\s]+", place[1])
        if (root, path) == ("sample", ["output_text"]):
            return text
        found = item
        if root == "sample":
            path = path[1:]
            try:
                found = json.loads(text)
            except ValueError:
                raise NoPart
        for name in path:
            if isinstance(found, list) and name.isdigit() and int(name) < len(found):
                found = found[int(name)]
            elif isinstance(found, dict) and name in found:
                found = found[name]
            elif root == "sample":
                raise NoPart
            else:
                raise KeyError(f"the record has no {place[0]}: {item}")
        return found if isinstance(found, str) else json.dumps(found, ensure_ascii=False, separators=(",", ":"))

    return re.sub(r"\\{\\{([^{}]*)\\}\\}", value, template)


def similarity(metric, text, wanted):
    if metric == "fuzzy_match":
        from rapidfuzz import fuzz

        return fuzz.ratio(text, wanted) / 100
    if metric == "bleu":
        import sacrebleu

        return sacrebleu.sentence_bleu(text, [wanted]).score / 100
    if metric == "gleu":
        from nltk.translate.gleu_score import sentence_gleu

        return sentence_gleu([wanted.split()], text.split())
    from rouge_score import rouge_scorer

    name = "rougeL" if metric == "rouge_l" else metric.replace("_", "")
    return rouge_scorer.RougeScorer([name]).score(wanted, text)[name].fmeasure

{JUDGE}
FUNCTIONS = {"min": min, "max": max, "abs": abs, **{name: getattr(math, name) for name in ("floor", "ceil", "exp", "sqrt", "log")}}


def grade(name, grader, prompt, text, item):
    kind = grader and grader["type"]
    if kind == "multi":
        grades = {each: grade(each, grader["graders"][each], prompt, text, item) for each in grader["graders"]}
        if None in grades.values():
            return None
        return float(eval(grader["calculate_output"], {"__builtins__": {}, **FUNCTIONS}, grades))
    if kind not in ("string_check", "text_similarity") or grader.get("evaluation_metric") == "cosine":
        return judge(name, grader, prompt, text, item)
    try:
        given, wanted = filled(grader["input"], item, text), filled(grader["reference"], item, text)
    except NoPart:
        return 0.0
    if kind == "text_similarity":
        return similarity(grader["evaluation_metric"], given, wanted)
    operations = {"eq": given == wanted, "ne": given != wanted, "like": wanted in given, "ilike": wanted.lower() in given.lower()}
    return float(operations[grader["operation"]])


def reward_of(reward):
    def judged(prompts, completions, item, **_):
        texts = [each if isinstance(each, str) else each[-1]["content"] for each in completions]
        triples = zip(prompts, texts, map(json.loads, item), strict=True)
        return [grade(reward["name"], reward["grader"], prompt, text, record) for prompt, text, record in triples]

    judged.__name__ = reward["name"]
    return judged


`
