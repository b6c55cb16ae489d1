// What measures answers: graders, a judge, and intervals. For parts of lowrank that compare models of different makers.

export { sameCalls } from '../../model/text/calls/compare.js'
export { checkJudge, type JudgeSettings, judge } from '../../train/evaluate/answers.js'
export { bootstrap, type Interval, type Statistic } from '../../train/evaluate/bootstrap.js'
export { type Grade, openGrader } from '../../train/loop/graders/grader.js'
export { CLAUSES, type Clause, checkWriter, writerOf } from '../../train/rows/sources.js'
