//go:build race

package nodetest

// weir-agent is built with the race detector if the test is, unless the test uses MainAsShipped.
const raceDetector = true
