// A vitest reporter that closes the run: a line for each skipped test and for each that passed only when repeated, then
// `N passed, N failed` and, where it applies, `, N skipped`. A file that does not load and an error outside every test
// count as one failure each.

export default class ClosingLine {
  onTestRunEnd(testModules, unhandledErrors) {
    const count = { passed: 0, failed: unhandledErrors.length, skipped: 0 }
    const lines = []
    for (const testModule of testModules) {
      if (testModule.errors().length > 0) count.failed++
      for (const test of testModule.children.allTests()) {
        const { state } = test.result()
        count[state === 'passed' || state === 'failed' ? state : 'skipped']++
        if (state !== 'passed' && state !== 'failed')
          lines.push(`skipped: ${testModule.relativeModuleId} ${test.fullName}`)
        if (state === 'passed' && test.diagnostic()?.flaky)
          lines.push(`passed when repeated: ${testModule.relativeModuleId} ${test.fullName}`)
      }
    }
    const skipped = count.skipped > 0 ? `, ${count.skipped} skipped` : ''
    lines.push(`${count.passed} passed, ${count.failed} failed${skipped}`)
    // Print at the very end, after the summary of the reporter before this one.
    process.on('exit', () => process.stdout.write(`${lines.join('\n')}\n`))
  }
}
