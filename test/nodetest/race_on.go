//go:build race

package nodetest

// raceDetector says whether the test runs with it; weir-agent then does too.
const raceDetector = true
